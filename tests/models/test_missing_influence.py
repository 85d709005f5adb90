"""What is absent has no influence at all, in any system of the table, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_systems

from msa_jax.models import SYSTEMS
from msa_jax.step import compose

# Rows that lost something that the system reads.
CHANGED = {"text_only": [0, 3]}


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_absent_modalities_have_exactly_no_influence(name):
  config = tiny_systems.config(name)
  system = compose.build(config)
  params, collections = tiny_systems.variables(system)
  predict = jax.jit(system.predict)
  batch = tiny_systems.batch(config)
  absent = np.zeros((6, 3), bool)
  absent[:3] = np.eye(3, dtype=bool)  # each modality alone
  absent[3] = [True, True, False]
  absent[4] = True  # and all of them
  batch = batch.replace(
    available=batch.available & ~absent.reshape(6, *[1] * (batch.available.ndim - 2), 3)
  )
  noisy = {
    key: tiny_systems.garbage(batch.modalities[key], absent[:, column], column)
    for column, key in enumerate(batch.order)
  }
  for key, modality in noisy.items():
    # What a lost step held does not matter either.
    features = jnp.where(modality.lost[..., None], 7e4, modality.features)
    noisy[key] = modality.replace(features=features)
  plain = predict(params, collections, batch)
  other = predict(params, collections, batch.replace(modalities=noisy))
  for ours, theirs in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(ours, theirs)
    assert np.isfinite(np.asarray(ours)).all()
  full = predict(params, collections, tiny_systems.batch(config))
  for task, values in plain.predictions.items():
    np.testing.assert_allclose(values[4], 0.625)
    if task != "sentiment":
      continue  # a head of one modality need not see that another is gone
    changed = np.asarray(values != full.predictions[task]).reshape(6, -1).any(axis=1)
    # Every row that lost something, so that the equality above is not an empty one.
    assert changed[CHANGED.get(name, [0, 1, 2, 3])].all() and not changed[5]
