"""MMoLRE: shared and task-specific low-rank experts."""

from msa_jax.models.mmolre.network import MMoLRE
from msa_jax.models.mmolre.system import SYSTEM, losses, options

__all__ = ["SYSTEM", "MMoLRE", "losses", "options"]
