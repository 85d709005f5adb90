"""Missing modalities and content: patterns, and masks drawn from them."""

from msa_jax.data.missing.patterns import (
  NONE,
  Masks,
  Pattern,
  apply,
  arrays,
  conditions,
  degrade,
  draw,
  grids,
  keep,
  parse,
  save,
  uniforms,
)

__all__ = [
  "NONE",
  "Masks",
  "Pattern",
  "apply",
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
