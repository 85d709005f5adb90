"""What a mutation is, and which tests must notice those of a system."""

from typing import NamedTuple


class Mutation(NamedTuple):
  """One change.

  Attributes:
    name: what it does.
    file: below msa_jax.
    old, new: text, wherever it occurs in the file.
    tests: what must notice, as arguments of pytest.
  """

  name: str
  file: str
  old: str
  new: str
  tests: tuple[str, ...]


SITES = "tests/models/test_dropout_sites.py"
HGEM = "tests/models/hgem/"
MMOLRE = "tests/models/mmolre/"
DERL = "tests/models/derl/"
MOMKE = "tests/models/momke/"
AWF = "tests/models/late_fusion/test_awf.py"
BALANCE = "tests/step/balance/"


def sites(system: str) -> tuple[str, ...]:
  """The tests of a system's dropout sites."""
  return (SITES, "-k", f"{system}-")
