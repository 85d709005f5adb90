"""Tables of options: name and type, default, meaning."""

from collections.abc import Iterable, Mapping, Sequence

from msa_jax.config.described import Option, literal


def code(text: str) -> str:
  """Text in the typeface of code, safe within a table."""
  return f"`{text}`".replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A Markdown table."""
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def of_options(options: Iterable[Option]) -> str:
  """A table of options: name, type and default beside the meaning.

  Two columns, for narrow screens; the group's heading says what goes before the names.
  """
  rows = []
  for each in options:
    name, default = code(each.key.rpartition(".")[2]), _default_of(each)
    meaning = each.meaning.replace("|", "\\|")
    rows.append((f"{name}<br>{each.type}, {default}", meaning))
  return table(("option, type, default", "meaning"), rows)


def _default_of(option: Option) -> str:
  if not isinstance(option.default, Mapping):
    return code(literal(option.default))
  entries = option.default.items()
  return ", ".join(code(f"{key}={literal(value)}") for key, value in entries) or "none"
