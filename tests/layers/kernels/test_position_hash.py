"""Random bits from positions."""

import jax
import numpy as np
import pytest

from msa_jax.layers.kernels.position_hash import position_hash, position_hash_plain


def words(seed):
  return jax.random.key_data(jax.random.key(seed))


def test_hashed_bits_are_each_fair_and_spread():
  bits = np.asarray(position_hash(words(5), (64, 64, 16)))
  for place in range(32):
    # 65536 draws: sigma 0.002.
    assert abs(((bits >> place) & 1).mean() - 0.5) < 0.01
  assert len(np.unique(bits)) > 65000  # 2^16 draws of 2^32 collide about 0.5 times


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 1, 5), (2, 3, 4, 5)])
def test_positions_are_counted_in_row_major_order(shape):
  bits = position_hash(words(2), shape)
  assert bits.shape == shape
  assert np.array_equal(bits, position_hash_plain(words(2), shape))


def test_a_bit_is_the_key_and_the_position_mixed_in_integers():
  def lowbias32(word):
    word = ((word ^ (word >> 16)) * 0x7FEB352D) % 2**32
    word = ((word ^ (word >> 15)) * 0x846CA68B) % 2**32
    return word ^ (word >> 16)

  first, last = (int(word) for word in words(11))
  expected = [lowbias32(lowbias32(place ^ first) ^ last) for place in range(6)]
  assert position_hash(words(11), (2, 3)).ravel().tolist() == expected
