"""A pretrained text encoder inside any system, trained with it.

A batch then carries token ids in place of text features; the encoder's last states
become the features, and the system is what it was. `with_encoder` does this to a row
of the table of systems.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from msa_jax.errors import UserError
from msa_jax.layers.masking import hide_unavailable
from msa_jax.models.system import Stage, System, nothing_shared
from msa_jax.text import finetune
from msa_jax.text.bert import EncoderConfig, TextEncoder
from msa_jax.typing import Batch, ModelOutput, TrainState


class WithEncoder(nn.Module):
  """A system whose text is encoded first. The encoder's parameters lie beside the
  system's own, under `text_encoder`.

  Attributes:
    inner: the system's module.
    encoder: sizes.
    trained: how many of the upper layers are trained, -1 = all of it.
    remat, dtype: see `TextEncoder`.
  """

  inner: nn.Module
  encoder: EncoderConfig
  trained: int = -1
  remat: bool = False
  dtype: Any = jnp.float32

  def setup(self):
    nn.share_scope(self, self.inner)

  def __call__(self, batch: Batch, *, train: bool, **call: Any) -> ModelOutput:
    """The system's own, of the encoded batch."""
    return self.inner(self.encoded(batch, train), train=train, **call)

  @nn.compact
  def encoded(self, batch: Batch, train: bool) -> Batch:
    """The batch with text features [b t d] made of its token ids.

    Tokens that are padding, lost, unavailable or of filler rows are attended to by
    none, and have features of zero.
    """
    text = hide_unavailable(batch, keep_lost=True).modalities["text"]
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
      trained=self.trained,
      deterministic=not train,
      dtype=self.dtype,
      remat=self.remat,
      name=finetune.PARAMETERS,
    )
    last = encode(tokens, visible, None, extras)[-1].astype(jnp.float32)
    features = jnp.where(visible[..., None], last, 0.0)
    own = {"tokens", *extras}
    kept = {k: v for k, v in text.ids.items() if k not in own}
    text = batch.modalities["text"].replace(features=features, ids=kept)
    return batch.replace(modalities={**batch.modalities, "text": text})


class WithEncoderInTwoParts(WithEncoder):
  """The same around a system that B-fusion can balance."""

  def encode(self, batch: Batch, *, train: bool) -> Mapping[str, Float[Array, "b d"]]:
    """The system's own, of the encoded batch."""
    return self.inner.encode(self.encoded(batch, train), train=train)

  def tail(self, *arguments: Any, train: bool) -> ModelOutput:
    """The system's own: it reads what `encode` gave, and no features."""
    return self.inner.tail(*arguments, train=train)


def with_encoder(system: System) -> System:
  """The same system, with an encoder inside where `config.text` trains one."""
  return system._replace(
    build=functools.partial(_build, system),
    partition=functools.partial(_in_encoder_or, system.partition),
    recipe=functools.partial(_recipe, system),
    shared=(
      system.shared
      if system.shared is nothing_shared
      else functools.partial(_in_encoder_or, system.shared)
    ),
  )


def _build(system: System, config: ml_collections.ConfigDict) -> nn.Module:
  inner = system.build(config)
  if not finetune.is_tuned(config):
    return inner
  if config.spec.utterances:
    raise UserError(
      f"config.text.finetune={config.text.finetune!r} with"
      f" config.data.sample_unit='dialogue':"
      " a dialogue's utterances are one step each; choose 'none' (frozen features), or"
      " unit 'utterance'."
    )
  encoder = finetune.encoder_config(config)
  parts = hasattr(inner, "encode") and hasattr(inner, "tail")
  made = WithEncoderInTwoParts if parts else WithEncoder
  narrow = config.model.get("dtype", "float32") == "bfloat16"
  return made(
    inner=inner,
    encoder=encoder,
    trained=finetune.trained_layers(config.text.finetune, encoder.n_layers),
    remat=config.text.remat,
    dtype=jnp.bfloat16 if narrow else jnp.float32,
  )


def _in_encoder_or(otherwise, path: tuple[str, ...]) -> str:
  """Partition, or group of shared parameters: the encoder is one of its own."""
  return finetune.PARAMETERS if path[0] == finetune.PARAMETERS else otherwise(path)


def _recipe(
  system: System, config: ml_collections.ConfigDict, stage: Stage, recipe: Any
) -> Any:
  made = system.recipe(config, stage, recipe)
  if not finetune.is_tuned(config):
    return made
  return made._replace(init=lambda seed: _start_pretrained(config, made.init(seed)))


def _start_pretrained(
  config: ml_collections.ConfigDict, state: TrainState
) -> TrainState:
  """The state with the checkpoint's values in the encoder.

  They are asked for when the program runs: shapes alone (of a run that is restored,
  say) need no checkpoint, and programs do not contain one.
  """
  shapes = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
    state.params[finetune.PARAMETERS],
  )
  values = jax.pure_callback(
    functools.partial(finetune.pretrained, config), shapes, vmap_method="broadcast_all"
  )
  return state.replace(params={**state.params, finetune.PARAMETERS: values})
