"""Dropout."""

import zlib

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.errors import UserError
from msa_jax.layers.dropout import Dropout, drop, normal, stream_words


def words(seed):
  return jax.random.key_data(jax.random.key(seed))


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.9])
def test_dropout_zeroes_the_given_share_and_keeps_the_mean(rate):
  values = drop(words(3), jnp.ones((200, 500)), rate)
  zero = np.asarray(values) == 0.0
  # 10^5 draws: standard error below 0.0016.
  assert abs(zero.mean() - rate) < 0.006
  assert np.allclose(np.asarray(values)[~zero], 1.0 / (1.0 - rate))


def test_rows_columns_and_keys_drop_independently():
  dropped = [
    np.asarray(drop(words(seed), jnp.ones((300, 300)), 0.5)) == 0.0 for seed in (0, 1)
  ]
  first = dropped[0] - 0.5
  for other in (dropped[1], np.roll(dropped[0], 1, 0), np.roll(dropped[0], 1, 1)):
    # Mean product of independent +-1/2 variables: 0 within 0.25 / 300 per sigma.
    assert abs(np.mean(first * (other - 0.5))) < 0.004
  assert np.abs(dropped[0].mean(axis=0) - 0.5).max() < 0.15
  assert np.abs(dropped[0].mean(axis=1) - 0.5).max() < 0.15


def test_a_key_gives_the_same_mask_alone_and_under_vmap():
  keys = jax.random.key_data(jax.random.split(jax.random.key(0), 3))
  values = jnp.ones((3, 5, 7))
  together = jax.vmap(lambda key, each: drop(key, each, 0.3))(keys, values)
  for index in range(3):
    alone = drop(keys[index], values[index], 0.3)
    assert np.array_equal(together[index], alone)


def test_dropout_is_the_identity_when_deterministic_or_of_rate_zero():
  values = jnp.arange(6.0).reshape(2, 3)
  assert np.array_equal(Dropout(0.5, deterministic=True).apply({}, values), values)
  assert np.array_equal(Dropout(0.0, deterministic=False).apply({}, values), values)


def test_gradients_pass_where_values_pass():
  values = jnp.full((4, 50), 2.0)
  key = words(9)
  gradient = jax.grad(lambda v: jnp.sum(drop(key, v, 0.25)))(values)
  kept = np.asarray(drop(key, values, 0.25)) != 0.0
  assert np.allclose(gradient, kept / 0.75)


def test_normal_numbers_have_the_moments_and_tails_of_a_normal():
  values = np.float64(normal(words(4), (400, 500)))
  assert np.all(np.isfinite(values))
  # 200,000 draws: sigma of the mean .0022, of the variance .0032, kurtosis .011.
  assert abs(values.mean()) < 0.011
  assert abs(values.var() - 1.0) < 0.016
  assert abs((values**4).mean() - 3.0) < 0.1
  assert abs((values > 1.96).mean() - 0.025) < 0.002


class TwoLayers(nn.Module):
  """Two sites of dropout, and two experts with one site each."""

  @nn.compact
  def __call__(self, values):
    experts = nn.vmap(
      Dropout,
      in_axes=None,
      out_axes=0,
      axis_size=2,
      split_rngs={"dropout": True},
      variable_axes={},
    )(0.5, deterministic=False)
    first = Dropout(0.5, deterministic=False)(values)
    second = Dropout(0.5, deterministic=False)(values)
    return jnp.concatenate([jnp.stack([first, second]), experts(values)])


def test_every_site_expert_and_key_has_a_mask_of_its_own():
  values = jnp.ones((50, 40))
  masks = [
    np.asarray(TwoLayers().apply({}, values, rngs={"dropout": jax.random.key(seed)}))
    for seed in (0, 0, 1)
  ]
  assert np.array_equal(masks[0], masks[1])
  different = np.concatenate([masks[0], masks[2]]).reshape(8, -1) > 0
  for a in range(8):
    for b in range(a):
      # 2000 pairs of fair coins agree half the time: sigma 0.011.
      assert abs(np.mean(different[a] == different[b]) - 0.5) < 0.056


def test_training_without_a_dropout_key_is_an_error():
  with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
    Dropout(0.5, deterministic=False).apply({}, jnp.ones((2, 2)))


def test_a_traced_rate_drops_what_the_same_fixed_rate_drops():
  values = jnp.ones((40, 50))
  keys = {"dropout": jax.random.key(3)}

  def dropped(rate):
    return Dropout(rate, deterministic=False).apply({}, values, rngs=keys)

  rates = jnp.asarray([0.0, 0.25, 0.5])
  for rate, ours in zip(rates, jax.vmap(dropped)(rates), strict=True):
    np.testing.assert_array_equal(ours, dropped(float(rate)))


# Words of two lifted sites under the key 7, as they have been since the first runs.
LIFTED = [[3028665026, 3539239522], [4191593615, 766897987]]


class Site(nn.Module):
  """A module that returns its words."""

  @nn.compact
  def __call__(self, values):
    return stream_words(self, "dropout")


class Sites(nn.Module):
  """Sites under a given name, under a default one, and two lifted from one."""

  @nn.compact
  def __call__(self, values):
    bank = nn.vmap(
      *(Site, {}), in_axes=None, axis_size=2, split_rngs={"dropout": True}
    )(name="bank")
    return Site(name="first")(values), Site()(values), bank(values)


class Root(nn.Module):
  @nn.compact
  def __call__(self, values):
    return stream_words(self, "dropout"), Sites(name="mid")(values)


def _mixed(word):
  """`lowbias32` in Python's integers."""
  word = ((word ^ (word >> 16)) * 0x7FEB352D) % 2**32
  word = ((word ^ (word >> 15)) * 0x846CA68B) % 2**32
  return word ^ (word >> 16)


def test_the_words_of_a_site_are_the_key_mixed_with_the_modules_path():
  """Recorded runs repeat only while this holds.

  A failure after an update of Flax means that it keeps keys and paths of random
  streams in another way: `layers.dropout._stream` has to find them there.
  """
  key = jax.random.key(7)
  root, (named, unnamed, bank) = Root().apply({}, jnp.ones(1), rngs={"dropout": key})
  paths = {(): root, ("mid", "first"): named, ("mid", "Site_0"): unnamed}
  for path, ours in paths.items():
    site = zlib.crc32(repr(path).encode())
    expected = [_mixed(int(word) ^ site) for word in jax.random.key_data(key)]
    assert ours.tolist() == expected, f"flax {flax.__version__}: path {path}"
  # A lifted module splits the key that Flax folds for it.
  assert bank.tolist() == LIFTED, f"flax {flax.__version__}: lifted modules"


class KeysOnly(nn.Module):
  """A module under a Flax whose scopes hold nothing but keys."""

  @nn.compact
  def __call__(self, values):
    self.scope.rngs = {"dropout": jax.random.key(7)}
    return stream_words(self, "dropout")


def test_a_release_of_flax_without_these_streams_is_refused_by_name():
  with pytest.raises(UserError, match=f"flax {flax.__version__}: its random streams"):
    KeysOnly().apply({}, jnp.ones(1))
