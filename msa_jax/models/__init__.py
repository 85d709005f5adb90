"""The table of systems. Adding one touches its file, one line here and its config."""

from msa_jax.models import hgem
from msa_jax.models.base import System

SYSTEMS: dict[str, System] = {
  "hgem": hgem.SYSTEM,
}
