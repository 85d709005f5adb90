"""H-GEM: hierarchical gated mixture of experts."""

from msa_jax.models.hgem.network import HGEM
from msa_jax.models.hgem.system import SYSTEM, options

__all__ = ["HGEM", "SYSTEM", "options"]
