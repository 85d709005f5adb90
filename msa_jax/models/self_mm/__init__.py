"""Self-MM: labels of single modalities that the training makes for itself."""

from msa_jax.models.self_mm.network import SYSTEM, SelfMM, options

__all__ = ["SYSTEM", "SelfMM", "options"]
