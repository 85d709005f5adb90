"""Hooks change the hidden states where they sit, and nothing else: neither the
encoder's parameters nor its dropout, nor what the padding may do."""

import doctest
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_encoder

from msa_jax.errors import UserError
from msa_jax.layers.transformer import EncoderStack
from msa_jax.text import hooks, weights
from msa_jax.text.bert import TextEncoder, config_of

pytestmark = pytest.mark.slow


N_LAYERS = 3
CONFIG = config_of({**tiny_encoder.OPTIONS, "num_hidden_layers": N_LAYERS})
PLACES = range(N_LAYERS + 1)
MASK = jnp.arange(6)[None] < jnp.array([[6], [4], [1]])
TOKENS = jnp.where(MASK, np.random.default_rng(0).integers(1, 29, (3, 6)), 0)
AUDIO = jnp.asarray(np.random.default_rng(1).normal(size=(3, 6, 4)), jnp.float32)
COTANGENT = jnp.asarray(np.random.default_rng(2).normal(size=(3, 6, 8)), jnp.float32)
COTANGENT = COTANGENT * MASK[..., None]  # states at padding are undefined


@functools.cache
def loaded():
  """Parameters in one stack, random in every entry."""
  random = np.random.default_rng(3)
  tensors = {
    name: random.normal(0.0, 0.3, shape).astype(np.float32)
    for name, (_, shape) in weights._names(CONFIG).items()
  }
  return jax.tree.map(jnp.asarray, weights.from_tensors(tensors, CONFIG))


def encoder_params(trained=-1):
  return weights.split(loaded(), trained)


def identity(states, mask, **context):
  return states


class Shift(nn.Module):
  """Adds a linear map of audio."""

  @nn.compact
  def __call__(self, states, mask, *, audio, **context):
    return states + nn.Dense(states.shape[-1], use_bias=False)(audio)


class System(nn.Module):
  """A hook that belongs to the module around the encoder."""

  place: int
  trained: int = -1
  loop: bool = False

  def setup(self):
    self.shift = Shift()
    self.text_encoder = TextEncoder(
      CONFIG,
      trained=self.trained,
      unroll=not self.loop,
      remat=self.loop,
      after={self.place: self.shift},
    )

  def __call__(self, audio):
    return self.text_encoder(TOKENS, MASK, audio=audio)


def states_and_gradients(trained=-1, **how):
  """Hidden states [n b t d] with dropout, and the gradients of a random loss."""
  model = TextEncoder(CONFIG, trained=trained, deterministic=False, **how)

  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(params):
    rngs = {"dropout": jax.random.key(0)}
    states = model.apply({"params": params}, TOKENS, MASK, rngs=rngs)
    return jnp.sum(states[-1] * COTANGENT), jnp.stack(states)

  (_, states), gradients = jax.jit(run)(encoder_params(trained))
  return states, gradients


def assert_same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@functools.cache
def without_hooks(trained, unroll):
  return states_and_gradients(trained, unroll=unroll)


@pytest.mark.parametrize(
  ("trained", "unroll", "places"),
  [
    (-1, True, PLACES),
    (-1, False, PLACES),
    (-1, False, [1]),
    (1, True, PLACES),
    (1, True, [3]),
    (1, False, [1]),
    (1, False, [3]),
  ],
)
def test_hooks_that_change_nothing_change_no_bit(trained, unroll, places):
  plain, expected = without_hooks(trained, unroll)
  after = dict.fromkeys(places, identity)
  states, gradients = states_and_gradients(trained, unroll=unroll, after=after)
  np.testing.assert_array_equal(states, plain)
  # A compiler may add up in another order in a shorter loop.
  rounding = 0.0 if unroll else 2e-6
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rounding, atol=rounding),
    gradients,
    expected,
  )


@functools.cache
def plain_states():
  return jax.jit(TextEncoder(CONFIG).apply)({"params": loaded()}, TOKENS, MASK)


CONSTANT = np.random.default_rng(4).normal(size=(1, 1, 8)).astype(np.float32)


@functools.cache
def lower_then_upper(place):
  """The layers below `place`, a constant, and those above, run apart."""
  params = loaded()
  below, above = (
    jax.tree.map(lambda leaf, cut=cut: leaf[cut], params["layers"])
    for cut in (slice(place), slice(place, None))
  )
  embedded = plain_states()[0]

  def run(n_layers, stacked, hidden):
    sizes = {"n_layers": n_layers, "n_heads": 2, "width": 8, "inner": 12}
    apply = jax.jit(EncoderStack(**sizes, unroll=True).apply)
    return list(apply({"params": stacked}, hidden, MASK)[1])

  states = [embedded, *(run(place, below, embedded) if place else [])]
  states[-1] += CONSTANT
  return states + (run(N_LAYERS - place, above, states[-1]) if place < 3 else [])


@pytest.mark.parametrize(
  "how",
  [
    {"unroll": True},
    {"unroll": False},
    {"unroll": False, "remat": True, "trained": 2},
    {"unroll": True, "trained": 1},
    {"unroll": False, "trained": 1},
  ],
)
@pytest.mark.parametrize("place", PLACES)
def test_a_constant_added_between_layers_is_what_the_layers_above_read(place, how):
  model = TextEncoder(
    CONFIG, after={place: lambda states, mask: states + CONSTANT}, **how
  )
  params = encoder_params(how.get("trained", -1))
  found = jax.jit(model.apply)({"params": params}, TOKENS, MASK)
  plain, expected = plain_states(), lower_then_upper(place)
  assert len(found) == N_LAYERS + 1
  for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
    np.testing.assert_allclose(ours[MASK], theirs[MASK], atol=2e-6)
    changed = np.abs(ours - plain[i])[MASK].max()
    assert changed < 2e-6 if i < place else changed > 1e-2


@pytest.mark.parametrize("trained", [-1, 1])
def test_gradients_pass_a_hook_on_their_way_down(trained):
  plain = without_hooks(trained, True)[1]
  last = {N_LAYERS: lambda states, mask: 2.0 * states}
  twice = states_and_gradients(trained, unroll=True, after=last)[1]
  assert_same(twice, jax.tree.map(lambda leaf: 2.0 * leaf, plain))
  assert np.abs(plain["layers"]["query"]["kernel"]).max() > 1e-3
  # What the states no longer depend on gets nothing.
  cut = {2: lambda states, mask: jnp.zeros_like(states)}
  gradients = states_and_gradients(trained, unroll=True, after=cut)[1]
  above = -1 if trained < 0 else 0
  kernels = gradients["layers"]["output"]["kernel"]
  assert np.any(kernels[above]) and not np.any(kernels[:above])
  assert not np.any(gradients["embeddings"]["scale"])


def hooked_gradients(place, trained, loop):
  system = System(place, trained, loop)
  shapes = jax.eval_shape(system.init, jax.random.key(0), AUDIO)["params"]
  kernel = np.random.default_rng(5).normal(size=(4, 8)).astype(np.float32)
  assert shapes["shift"]["Dense_0"]["kernel"].shape == kernel.shape
  params = {"shift": {"Dense_0": {"kernel": jnp.asarray(kernel)}}}
  params["text_encoder"] = encoder_params(trained)

  def loss(params, audio):
    return jnp.sum(system.apply({"params": params}, audio)[-1] * COTANGENT)

  return jax.jit(jax.grad(loss, (0, 1)))(params, AUDIO)


@pytest.mark.parametrize("place", PLACES)
def test_a_hook_below_or_above_trained_layers_gets_its_whole_gradient(place):
  full, audio = hooked_gradients(place, trained=-1, loop=False)
  part, same = hooked_gradients(place, trained=1, loop=True)
  assert np.abs(full["shift"]["Dense_0"]["kernel"]).min() > 1e-5
  assert np.abs(audio[MASK]).min() > 0 and not np.any(audio[~MASK])
  for ours, theirs in ((part["shift"], full["shift"]), (same, audio)):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs
    )
  # The layers that are not trained stay so, although a gradient passes them.
  frozen = part["text_encoder"]
  for name in ("embeddings", "lower"):
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(frozen[name]))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b[-1:], rtol=1e-4, atol=1e-5),
    frozen["layers"],
    full["text_encoder"]["layers"],
  )


@pytest.mark.parametrize("place", PLACES)
def test_a_hook_sees_no_padding_and_puts_nothing_there(place):
  """Not even one that heeds no mask: the mean over all steps, and NaN at padding."""

  def careless(states, mask):
    mixed = states + jnp.sum(states, axis=1, keepdims=True)
    return jnp.where(mask[..., None], mixed, jnp.nan)

  model = TextEncoder(CONFIG, after={place: careless})
  run = jax.jit(lambda tokens: model.apply({"params": loaded()}, tokens, MASK))
  for one, other in zip(run(TOKENS), run(jnp.where(MASK, TOKENS, 17)), strict=True):
    np.testing.assert_array_equal(one[MASK], other[MASK])
    assert np.isfinite(one).all()


def test_a_text_without_any_token_stays_finite():
  model = TextEncoder(CONFIG, after={1: Shift()})
  mask = MASK.at[1].set(False)
  call = functools.partial(model.init_with_output, jax.random.key(0), TOKENS, mask)
  assert np.isfinite(jax.jit(call)(audio=AUDIO)[0][-1]).all()


@pytest.mark.parametrize("trained", [-1, 1])
def test_the_encoder_s_parameters_are_those_without_hooks(trained, getkey):
  key = getkey()
  plain = TextEncoder(CONFIG, trained=trained).init(key, TOKENS, MASK)["params"]
  own = TextEncoder(CONFIG, trained=trained, after={0: Shift(), 2: Shift()})
  made = dict(own.init(key, TOKENS, MASK, audio=AUDIO)["params"])
  assert set(made) - set(plain) == {"after_0", "after_2"}
  del made["after_0"], made["after_2"]
  assert_same(made, plain)
  outside = System(2, trained).init(key, AUDIO)["params"]
  assert set(outside) == {"shift", "text_encoder"}
  shapes = functools.partial(jax.tree.map, jnp.shape)
  assert shapes(outside["text_encoder"]) == shapes(plain)


def test_a_checkpoint_loads_into_an_encoder_with_hooks_and_is_exported(tmp_path):
  source = tmp_path / "source"
  found = weights.load(tiny_encoder.folder(source, n_layers=N_LAYERS))
  params = weights.split(found.params, 1)
  own = TextEncoder(CONFIG, trained=1, after={0: Shift(), 3: Shift()})
  made = own.init(jax.random.key(0), TOKENS, MASK, audio=AUDIO)["params"]
  mixed = {**made, **params}
  assert mixed.keys() == made.keys()
  apply = jax.jit(own.apply)
  states = apply({"params": mixed}, TOKENS, MASK, audio=0.0 * AUDIO)
  plain = jax.jit(TextEncoder(CONFIG).apply)({"params": found.params}, TOKENS, MASK)
  np.testing.assert_allclose(states[-1], plain[-1], atol=1e-6)
  weights.export(mixed, source, found.config, tmp_path / "out")
  assert_same(dict(weights.load(str(tmp_path / "out")).params), dict(found.params))


def test_a_hook_reads_and_gives_states_of_the_encoder_s_type():
  seen = []

  def wide(states, mask):
    seen.append(states.dtype)
    return states.astype(jnp.float32) + 1.0

  for unroll in (True, False):
    model = TextEncoder(
      CONFIG, dtype=jnp.bfloat16, unroll=unroll, after=dict.fromkeys(PLACES, wide)
    )
    states = model.apply({"params": loaded()}, TOKENS, MASK)
    assert {each.dtype for each in states} == {jnp.dtype(jnp.bfloat16)}
  assert seen == [jnp.bfloat16] * 8


@pytest.mark.parametrize("place", [-1, N_LAYERS + 1, True])
def test_places_that_no_layer_has_are_refused(place):
  message = (
    rf"TextEncoder.after: place {place!r} must be the number of layers below the hook,"
    r" 0 \(after the embeddings\) to 3 \(after the last layer\)"
  )
  with pytest.raises(UserError, match=message):
    TextEncoder(CONFIG, after={place: identity})


def test_states_of_another_shape_are_refused():
  model = TextEncoder(CONFIG, after={1: lambda states, mask: states[..., :3]})
  message = r"TextEncoder.after: the hook at 1 returned shape \(3, 6, 3\), must be"
  with pytest.raises(UserError, match=message + r" that of the states, \(3, 6, 8\)"):
    model.apply({"params": loaded()}, TOKENS, MASK)


def test_the_example_runs():
  found = doctest.testmod(hooks)
  assert found.attempted and not found.failed
