"""Names that are written in options, and those of splits."""

from collections.abc import Collection, Iterable


def split_names(entries: Iterable[str]) -> tuple[str, ...]:
  """Names of an option of several, whose flag `--option=a,b` arrives as one string."""
  return tuple(n.strip() for e in entries for n in str(e).split(",") if n.strip())


def held_out_split(names: Collection[str]) -> str:
  """The split that figures speak of: test, or validation where there is no test."""
  return "test" if "test" in names else "valid"
