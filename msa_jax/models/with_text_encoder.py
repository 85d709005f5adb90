"""A pretrained text encoder inside any system, trained with it.

A batch then carries token ids in place of text features; the encoder's last states
become the features, and the system is what it was. `with_encoder` does this to a row
of the table of systems.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from msa_jax.config.options import TextConfig
from msa_jax.errors import UserError
from msa_jax.layers.masking import hide_unavailable
from msa_jax.models.with_anchor import WithAnchor
from msa_jax.text import context, finetune
from msa_jax.text.adapters import LowRank
from msa_jax.text.bert import EncoderConfig, TextEncoder
from msa_jax.text.finetune import PARAMETERS
from msa_jax.typing import Batch, Modality, ModelOutput, Spec, TrainState


class WithEncoder(nn.Module):
  """A system whose text is encoded first. The encoder's parameters lie beside the
  system's own, under `text_encoder`.

  Attributes:
    inner: the system's module.
    encoder: sizes.
    trained: how many of the upper layers are trained, -1 = all of it.
    frozen_dtype, low_rank: see `TextEncoder`.
    remat, dtype: see `TextEncoder`.
    sees_dropped: whether the system's module reads steps whose content was lost.
    hooked: whether the system's module changes the encoder's states: it then has a
      method `hooks(batch, train)`, and takes `hooked` where they have been changed.
  """

  inner: nn.Module
  encoder: EncoderConfig
  trained: int = -1
  frozen_dtype: Any = jnp.float32
  low_rank: LowRank | None = None
  remat: bool = False
  dtype: Any = jnp.float32
  sees_dropped: bool = False
  hooked: bool = False

  def setup(self):
    nn.share_scope(self, self.inner)

  def __call__(self, batch: Batch, *, train: bool, **call: Any) -> ModelOutput:
    """The system's own, of the encoded batch."""
    if self.hooked:
      call = {**call, "hooked": True}
    return self.inner(self.encoded(batch, train), train=train, **call)

  def _hooks(self, batch: Batch, train: bool) -> Any:
    """What the system's module changes of the encoder's states (`text.hooks`)."""
    if not self.hooked:
      return {}
    batch = hide_unavailable(batch)
    if isinstance(self.inner, WithAnchor):
      return self.inner.hooks_of_anchored(batch, train)
    return self.inner.hooks(batch, train)

  @nn.compact
  def encoded(self, batch: Batch, train: bool) -> Batch:
    """The batch with text features [b t d] made of its token ids.

    Tokens that are padding, lost, unavailable or of filler rows are attended to by
    none, and have features of zero. Those of neighbours are attended to, and have no
    features.
    """
    batch = hide_unavailable(batch, keep_lost=True)
    text = batch.modalities["text"]
    visible = text.mask & ~text.lost
    pad = self.encoder.pad
    # RoBERTa counts its positions over all but padding, so what stands for a lost
    # token must be another one, for the others to keep theirs.
    hidden = jnp.where(text.lost, 1 if pad == 0 else 0, pad)
    tokens = jnp.where(visible, text.ids["tokens"], hidden)
    extras = {
      name: jnp.where(visible, text.ids[name], rows - 1)
      for name, rows in self.encoder.extras
    }
    encode = TextEncoder(
      self.encoder,
      after=self._hooks(batch, train),
      trained=self.trained,
      frozen_dtype=self.frozen_dtype,
      low_rank=self.low_rank,
      deterministic=not train,
      dtype=self.dtype,
      remat=self.remat,
      name=PARAMETERS,
    )
    steps, types = tokens.shape[1], None
    if text.context:
      tokens, visible, types = self._beside(tokens, visible, text)
    last = encode(tokens, visible, types, extras)[-1].astype(jnp.float32)
    last, visible = last[:, :steps], visible[:, :steps]
    visible = visible & text.mask
    features = jnp.where(visible[..., None], last, 0.0)
    own = {"tokens", *extras}
    kept = {k: v for k, v in text.ids.items() if k not in own}
    text = text.replace(features=features, ids=kept, context={})
    encoded = batch.replace(modalities={**batch.modalities, "text": text})
    return hide_unavailable(encoded, keep_lost=self.sees_dropped)

  @nn.nowrap
  def _beside(self, tokens, visible, text: Modality):
    """Tokens with those of the neighbours after them, which of both can be seen, and
    the numbers of their segments."""
    beside = text.context["tokens"]
    there = beside >= 0
    # What a sample's own text is not there for, no neighbour tells.
    there = there & jnp.any(text.mask, axis=1, keepdims=True)
    index, segment, real = context.place(
      tokens, jnp.sum(text.mask, axis=1), beside, self.encoder.max_tokens
    )

    def joined(own, other):
      return jnp.take_along_axis(jnp.concatenate([own, other], axis=1), index, axis=1)

    pad = self.encoder.pad
    types = jnp.where(real, segment, 0) if self.encoder.types > 1 else None
    tokens = jnp.where(real, joined(tokens, jnp.where(there, beside, pad)), pad)
    return tokens, joined(visible, there) & real, types


class WithEncoderInTwoParts(WithEncoder):
  """The same around a system that B-fusion can balance."""

  def encode(self, batch: Batch, *, train: bool) -> Mapping[str, Float[Array, "b d"]]:
    """The system's own, of the encoded batch."""
    return self.inner.encode(self.encoded(batch, train), train=train)

  def tail(
    self, features: Any, omega: Any, batch: Batch, *, train: bool
  ) -> ModelOutput:
    """The system's own: of the batch it reads what is there, and no features."""
    batch = hide_unavailable(batch, keep_lost=self.sees_dropped)
    return self.inner.tail(features, omega, batch, train=train)


def with_encoder(
  inner: nn.Module,
  text: TextConfig,
  spec: Spec,
  narrow: bool = False,
  sees_dropped: bool = False,
) -> nn.Module:
  """A system's network with the text encoder of `config.text` in front of it.

  Args:
    inner: the network.
    text: which of the encoder's layers are trained.
    spec: of the corpus; has the encoder's sizes.
    narrow: compute in bfloat16.
    sees_dropped: whether the network reads steps whose content was lost.

  Raises:
    UserError: samples are dialogues, or more layers than there are.
  """
  if spec.utterances:
    raise UserError(
      f"config.text.finetune={text.finetune!r} with"
      " config.data.sample_unit='dialogue': a dialogue's utterances are one step each;"
      " choose 'none' (frozen features), or unit 'utterance'."
    )
  parts = hasattr(inner, "encode") and hasattr(inner, "tail")
  made = WithEncoderInTwoParts if parts else WithEncoder
  own = inner.anchored if isinstance(inner, WithAnchor) else inner
  return made(
    inner=inner,
    hooked=hasattr(own, "hooks"),
    encoder=spec.encoder,
    trained=finetune.trained_layers(text.finetune, spec.encoder.n_layers),
    frozen_dtype=jnp.dtype(text.frozen_dtype),
    low_rank=finetune.low_rank(text),
    remat=text.remat,
    dtype=jnp.bfloat16 if narrow else jnp.float32,
    sees_dropped=sees_dropped,
  )


def in_encoder_or(
  otherwise: Callable[[tuple[str, ...]], str], path: tuple[str, ...]
) -> str:
  """Partition, or group of shared parameters: the encoder is one by itself."""
  return PARAMETERS if path[0] == PARAMETERS else otherwise(path)


def with_pretrained(recipe: Any, text: TextConfig, encoder: EncoderConfig) -> Any:
  """A recipe whose states start from the checkpoint's values in the encoder.

  They are asked for when the program runs: shapes alone (of a run that is restored,
  say) need no checkpoint, and programs do not contain one.
  """

  def init(seed: Any) -> TrainState:
    state = recipe.init(seed)
    own = state.params[PARAMETERS]
    shapes = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
      finetune.without_adapters(own),
    )

    def read():
      values = finetune.pretrained(text, encoder)
      return jax.tree.map(lambda new, like: new.astype(like.dtype), values, shapes)

    values = jax.pure_callback(read, shapes, vmap_method="broadcast_all")
    return state.replace(params={**state.params, PARAMETERS: {**own, **values}})

  return recipe._replace(init=init)
