"""Positions: the formula, entry by entry, and the table's end."""

import math

import jax
import numpy as np
import pytest

from msa_jax.errors import UserError
from msa_jax.layers.positions import LearnedPositions, sinusoids


def test_sinusoids_interleave_sine_and_cosine_from_position_zero():
  table = sinusoids(7, 6)
  for position in range(7):
    for pair in range(3):
      angle = position / 10000 ** (2 * pair / 6)
      assert table[position, 2 * pair] == pytest.approx(math.sin(angle), abs=1e-12)
      assert table[position, 2 * pair + 1] == pytest.approx(math.cos(angle), abs=1e-12)
  np.testing.assert_array_equal(table[0], [0, 1, 0, 1, 0, 1])


def test_sinusoids_of_odd_width_are_refused():
  with pytest.raises(UserError, match="width 5.*even"):
    sinusoids(4, 5)


def test_learned_positions_are_the_first_rows_of_the_table(getkey):
  layer = LearnedPositions(5, 3)
  variables = layer.init(getkey(), 5)
  table = variables["params"]["table"]
  assert table.shape == (5, 3)
  np.testing.assert_array_equal(layer.apply(variables, 2), table[:2])


def test_learned_positions_end_with_the_table(getkey):
  layer = LearnedPositions(5, 3)
  variables = jax.eval_shape(lambda key: layer.init(key, 5), getkey())
  with pytest.raises(UserError, match="6 steps.*end at 5"):
    jax.eval_shape(lambda v: layer.apply(v, 6), variables)
