"""Random subsets of what is there."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def random_subset(
  uniforms: Float[Array | np.ndarray, "*n"], available: Bool[Array | np.ndarray, "*n m"]
) -> Bool[Array, "*n m"]:
  """Draws for each row a non-empty subset of its available entries, all equally likely.

  >>> random_subset(jnp.asarray([0.0, 0.9]), jnp.asarray([[True, False]] * 2)).tolist()
  [[True, False], [True, False]]

  Args:
    uniforms: a number in [0, 1) for each row.
    available: what there is to choose from.

  Returns:
    A subset of `available`; of a row with nothing available, nothing.
  """
  available = jnp.asarray(available)
  count = jnp.sum(available, axis=-1)
  drawn = 1 + jnp.floor(jnp.asarray(uniforms) * (2**count - 1)).astype(jnp.int32)
  place = jnp.cumsum(available, axis=-1) - 1  # of an entry among the available ones
  return available & ((drawn[..., None] >> jnp.maximum(place, 0)) % 2 == 1)
