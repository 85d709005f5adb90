"""MoMKE: mixture of modality knowledge experts."""

from msa_jax.models.momke.network import MoMKE, options
from msa_jax.models.momke.system import SYSTEM

__all__ = ["SYSTEM", "MoMKE", "options"]
