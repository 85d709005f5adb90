"""Errors that are the user's to mend."""


class UserError(ValueError):
  """The user's input is at fault; the command line prints it as one line and exits
  with code 2. The message says the value, the rule and the choices."""
