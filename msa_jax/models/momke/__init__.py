"""MoMKE: mixture of modality knowledge experts."""

from msa_jax.models.momke.network import MoMKE
from msa_jax.models.momke.system import SYSTEM, StageOptions, options

__all__ = ["SYSTEM", "MoMKE", "StageOptions", "options"]
