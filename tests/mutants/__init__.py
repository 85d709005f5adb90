"""The table of `tests/mutations.py`."""

from mutants import hgem, rest, systems

MUTATIONS = [*hgem.MUTATIONS, *systems.MUTATIONS, *rest.MUTATIONS]
