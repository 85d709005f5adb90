"""Missing modalities and content: patterns, and masks drawn from them."""

from msa_jax.data.missing.patterns import NONE, Pattern, conditions, grids, parse
from msa_jax.data.missing.sampling import (
  Masks,
  apply,
  apply_all,
  arrays,
  draw,
  draw_all,
  keep,
  save,
  uniforms,
)
from msa_jax.data.missing.text import Encode, Source, check, source_of

__all__ = [
  "NONE",
  "Encode",
  "Masks",
  "Pattern",
  "Source",
  "apply",
  "apply_all",
  "arrays",
  "check",
  "conditions",
  "draw",
  "draw_all",
  "grids",
  "keep",
  "parse",
  "save",
  "source_of",
  "uniforms",
]
