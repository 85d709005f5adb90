"""Config of any registered system that ships none: its defaults, and the shared ones.

`--config=mine` reads this file, with the name of the system as its variant.
"""

import ml_collections

from msa_jax import models
from msa_jax.config import defaults, files
from msa_jax.errors import UserError


def get_config(name: str) -> ml_collections.ConfigDict:
  """The shared defaults around the options that a system declares.

  Raises:
    UserError: there is no such system.
  """
  if name not in models.names():
    raise UserError(
      f"--config={name}: there is no config or system of this name; choose one of"
      f" {', '.join(sorted({*files.shipped(), *models.names()}))}, give the path of a"
      " config file, or install the package that provides the system."
    )
  system = models.get(name)
  model = {"task": "auto", **system.options, "name": name}
  return defaults.finish(defaults.base(model, {**defaults.LOSS, **system.losses}))
