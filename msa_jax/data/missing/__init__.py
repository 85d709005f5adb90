"""Missing modalities and content: patterns, and masks drawn from them."""

from msa_jax.data.missing.patterns import NONE, Pattern, conditions, grids, parse
from msa_jax.data.missing.sampling import (
  Masks,
  apply,
  apply_all,
  arrays,
  degrade,
  draw,
  keep,
  save,
  uniforms,
)

__all__ = [
  "NONE",
  "Masks",
  "Pattern",
  "apply",
  "apply_all",
  "arrays",
  "conditions",
  "degrade",
  "draw",
  "grids",
  "keep",
  "parse",
  "save",
  "uniforms",
]
