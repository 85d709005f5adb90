"""Hooks in a text encoder: modules that change its hidden states between layers.

A hook sits after a number of layers: 0 is after the embeddings (their norm and dropout
included), i after the i-th layer. It is called with the states, the mask and whatever
else the encoder was called with by name, and returns new states, which the next layer
reads. Make it in the module around the encoder, and its parameters lie beside the
encoder's, whose tree stays that of a checkpoint. For example, audio that shifts the
embeddings, in the manner of MAG-BERT:

  >>> import flax.linen as nn
  >>> import jax
  >>> import jax.numpy as jnp
  >>> from msa_jax.text.bert import EncoderConfig, TextEncoder
  >>> class Shift(nn.Module):
  ...   @nn.compact
  ...   def __call__(self, states, mask, *, audio, **others):
  ...     both = jnp.concatenate([audio, states], axis=-1)
  ...     gate = nn.relu(nn.Dense(states.shape[-1], name="gate")(both))
  ...     shift = gate * nn.Dense(states.shape[-1], name="audio")(audio)
  ...     return nn.LayerNorm(name="norm")(states + shift)
  >>> class System(nn.Module):
  ...   encoder: EncoderConfig
  ...
  ...   def setup(self):
  ...     self.shift = Shift()
  ...     self.text_encoder = TextEncoder(self.encoder, after={0: self.shift})
  ...
  ...   def __call__(self, tokens, mask, audio):
  ...     return self.text_encoder(tokens, mask, audio=audio)[-1]
  >>> system = System(EncoderConfig("bert", 30, 12, 2, 8, 2, 2, 16))
  >>> tokens, mask = jnp.ones((2, 5), int), jnp.ones((2, 5), bool)
  >>> variables = system.init(jax.random.key(0), tokens, mask, jnp.ones((2, 5, 3)))
  >>> sorted(variables["params"]), sorted(variables["params"]["text_encoder"])
  (['shift', 'text_encoder'], ['embeddings', 'layers'])

Source: MAG-BERT (Rahman et al., ACL 2020) shifts the embeddings, CENet (Wang et al.,
2022) the states after the first layer.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError

# (states [b t d], mask [b t], **context) -> states [b t d]; a module or a function.
Hook = Callable[..., Float[Array, "b t d"]]


def check(after: Mapping[int, Hook], n_layers: int) -> None:
  """Raises UserError where a hook sits at a place that the encoder does not have."""
  for place in after:
    if type(place) is not int or not 0 <= place <= n_layers:
      raise UserError(
        f"TextEncoder.after: place {place!r} must be the number of layers below the"
        f" hook, 0 (after the embeddings) to {n_layers} (after the last layer)."
      )


def call(
  after: Mapping[int, Hook],
  place: int,
  hidden: Float[Array, "b t d"],
  mask: Bool[Array, "b t"],
  context: Mapping[str, Any],
) -> Float[Array, "b t d"]:
  """Passes states through the hook at `place`, if there is one.

  The hook reads zeros at padding, and the states there stay what they were, so that a
  hook that heeds no mask neither reads nor spreads them.

  Raises:
    UserError: the hook returned another shape.
  """
  if place not in after:
    return hidden
  real = mask[..., None]  # [b t 1]
  changed = after[place](jnp.where(real, hidden, 0), mask, **context)
  if changed.shape != hidden.shape:
    raise UserError(
      f"TextEncoder.after: the hook at {place} returned shape {changed.shape}, must be"
      f" that of the states, {hidden.shape}."
    )
  return jnp.where(real, changed.astype(hidden.dtype), hidden)
