"""DERL: dual encoders with enhancement and filter units."""

from msa_jax.models.derl.network import DERL, DropoutRates
from msa_jax.models.derl.system import SYSTEM, options

__all__ = ["DERL", "SYSTEM", "DropoutRates", "options"]
