"""Codes of frames: the nearest centre, and one for what is not there."""

import numpy as np
import pytest
import ragged
from ragged import fit_apply, visible_rows

from msa_jax.data.transforms import kmeans
from msa_jax.typing import Sequences


@pytest.fixture(name="corpus")
def _corpus():
  return ragged.corpus()


@pytest.mark.parametrize("align", ["none", "pool"])
def test_codes_name_the_nearest_centroid_and_padding_has_its_own(corpus, align):
  fitted, result = fit_apply(corpus, align=align, clusters=5)
  state = fitted.states["frame_clusters"]
  centroids = state["centroids/audio"]
  assert centroids.shape == (5, 3)
  assert set(state) == {"centroids/audio"}
  used = set()
  for split in result.splits.values():
    audio = split.modalities["audio"]
    codes, visible = audio.ids["codes"], set(visible_rows(audio))
    for row in range(codes.shape[0]):
      for step in range(codes.shape[1]):
        expected = 5
        if (row, step) in visible:
          distance = ((audio.features[row, step] - centroids) ** 2).sum(axis=1)
          expected = distance.argmin()
        assert codes[row, step] == expected
        used.add(expected)
  assert used == {0, 1, 2, 3, 4, 5}


def test_centroids_are_fixed_points_that_separate_clear_clusters():
  rng = np.random.default_rng(0)
  centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
  member = rng.integers(0, 3, (40, 20))
  features = centres[member] + 0.1 * rng.standard_normal((40, 20, 2))
  sequences = Sequences(features.astype(np.float32), np.full(40, 20, np.int32))
  found = kmeans.centroids(sequences, 3)
  order = np.argsort(found @ [1.0, 2.0])
  np.testing.assert_allclose(found[order], centres, atol=0.05)
  few = Sequences(np.ones((1, 2, 2), np.float32), np.array([2], np.int32))
  np.testing.assert_allclose(kmeans.centroids(few, 4), np.ones((4, 2)))
