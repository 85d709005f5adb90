"""Errors of predicted sequences, against a loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.errors import UserError
from msa_jax.losses.sequence import sequence_error


@pytest.mark.parametrize("distance", ["mse", "l1"])
def test_errors_are_means_over_real_steps_alone(distance):
  random = np.random.default_rng(0)
  prediction, target = random.normal(size=(2, 3, 4, 2)).astype(np.float32)
  lengths = (4, 2, 0)
  mask = np.arange(4)[None] < np.asarray(lengths)[:, None]
  prediction[~mask], target[~mask] = 1e9, np.nan
  ours = sequence_error(
    jnp.asarray(prediction), jnp.asarray(target), jnp.asarray(mask), distance
  )
  for row, n in enumerate(lengths):
    gap = prediction[row, :n].astype(np.float64) - target[row, :n]
    each = gap**2 if distance == "mse" else np.abs(gap)
    np.testing.assert_allclose(ours[row], each.mean() if n else 0.0, rtol=1e-5)


def test_an_unknown_distance_is_answered_with_the_choices():
  one = jnp.ones((1, 1, 1))
  with pytest.raises(UserError, match="distance='cosine' must be one of"):
    sequence_error(one, one, jnp.ones((1, 1), bool), "cosine")
