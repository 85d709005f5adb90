"""What RoBERTa and XLM-R do otherwise than BERT: where positions start.

Everything else that tells them apart (tables, padding, norms) is in their configs;
the network is `text.bert.TextEncoder`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Int


def padded_positions(tokens: Int[Array, "b t"], pad: int) -> Int[Array, "b t"]:
  """Positions counted from `pad` + 1 over real tokens; padding has position `pad`.

  Source: Liu et al. 2019, as in fairseq.
  """
  real = (tokens != pad).astype(jnp.int32)
  return jnp.cumsum(real, axis=1) * real + pad
