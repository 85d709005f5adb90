"""The synthetic corpus: a known world, samples of it, and the best predictions."""

from msa_jax.data.synthetic.corpus import SPLITS, draw, synthetic, training_parts
from msa_jax.data.synthetic.generator import SyntheticOptions

__all__ = ["SPLITS", "SyntheticOptions", "draw", "synthetic", "training_parts"]
