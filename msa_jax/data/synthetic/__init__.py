"""The synthetic corpus: a known world, samples of it, and the best predictions."""

from msa_jax.data.synthetic.corpus import SPLITS, draw, synthetic, training_parts

__all__ = ["SPLITS", "draw", "synthetic", "training_parts"]
