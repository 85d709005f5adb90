"""H-GEM's inputs: each modality of a batch, embedded in tokens of one width."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from msa_jax.errors import UserError
from msa_jax.layers.attention import LAYER_NORM_EPSILON
from msa_jax.layers.convolution import MaskedConvolution
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import masked_mean
from msa_jax.typing import Batch

_Module = TypeVar("_Module", bound=nn.Module)

# How the three modalities of the paper appear in parameter names.
_SHORT = {"text": "t", "audio": "a", "vision": "v"}


def short_name(modality: str) -> str:
  """A modality's name within the names of parameters."""
  return _SHORT.get(modality, modality)


def share_scope(parent: nn.Module, module: _Module) -> _Module:
  """The module, its parameters' names beside those of the parent's own.

  Args:
    parent: module whose compact method calls.
    module: made in that method.
  """
  nn.share_scope(parent, module)
  return module


class Streams(NamedTuple):
  """What a batch has of the modalities, padded to one number of steps.

  Attributes:
    features: per modality [b t d].
    mask: [b t m] bool, True = real step.
    lost: [b t m] bool, True = real step whose content is missing.
    codes: per modality [b t] int32 cluster codes of the frames, or None.
  """

  features: Sequence[jax.Array]
  mask: jax.Array
  lost: jax.Array
  codes: Sequence[jax.Array | None]


def check_batch(batch: Batch, modalities: Sequence[str], max_steps: int) -> None:
  """Checks that a batch has some modalities and is not too long.

  Raises:
    UserError: naming what is missing, or the modality that is too long.
  """
  for name in modalities:
    if name not in batch.modalities:
      raise UserError(
        f"model.modalities={tuple(modalities)}: the batch has no {name}, only"
        f" {batch.order}"
      )
    check_length(name, batch.modalities[name].mask.shape[1], max_steps)


def check_length(modality: str, length: int, max_steps: int) -> None:
  """Checks the number of steps of a modality.

  Raises:
    UserError: there are too many.
  """
  if length > max_steps:
    raise UserError(
      f"model.max_steps={max_steps}: {modality} has {length} steps; align or shorten"
      f" the data, or choose model.max_steps >= {length}"
    )


def read_streams(
  batch: Batch,
  modalities: Sequence[str],
  embed_missing: bool = False,
  disabled: Sequence[str] = (),
) -> Streams:
  """Stacks the modalities of a batch, shorter ones padded.

  Args:
    batch: whose unavailable content is hidden (`hide_unavailable`, `keep_lost=True`).
    modalities: which of the batch's, in order.
    embed_missing: True = every step of a modality that a sample lacks is a lost step.
    disabled: modalities without any step.
  """
  n_steps = max(batch.modalities[name].mask.shape[1] for name in modalities)
  features, masks, losts, codes = [], [], [], []
  for name in modalities:
    modality = batch.modalities[name]
    missing = ((0, 0), (0, n_steps - modality.mask.shape[1]))
    features.append(jnp.pad(modality.features, (*missing, (0, 0))))
    masks.append(jnp.pad(modality.mask, missing))
    losts.append(jnp.pad(modality.lost, missing))
    code = modality.ids.get("codes") if name != "text" else None
    codes.append(None if code is None else jnp.pad(code, missing))
  mask, lost = jnp.stack(masks, axis=2), jnp.stack(losts, axis=2)  # [b t m]
  if embed_missing:
    steps = jnp.any(mask, axis=2, keepdims=True)
    absent = steps & ~jnp.any(mask, axis=1, keepdims=True)
    mask, lost = mask | absent, lost | absent
  used = jnp.array([name not in disabled for name in modalities])
  mask = mask & used[None, None]
  return Streams(features, mask, lost & mask, codes)


class ModalityEmbedding(nn.Module):
  """Convolution, embedding of codes or of lost content, layer norm (Eq. 2).

  Attributes:
    modality: its name; text has one vector for lost content, any other a table of
      codes whose last row is that of lost content.
    width: of the tokens.
    num_codes: rows of the table of codes, without the last.
    dropout, deterministic: dropout of the result.
    dropout_name: name of the dropout module, which seeds it.
    dtype: compute type.
  """

  modality: str
  width: int
  num_codes: int
  dropout: float = 0.0
  deterministic: bool = True
  dropout_name: str = "Dropout_0"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    features: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    lost: Bool[Array, "b t"],
    codes: Int[Array, "b t"] | None = None,
  ) -> Float[Array, "b t c"]:
    """Tokens; zeros at masked steps."""
    short = short_name(self.modality)
    convolution = MaskedConvolution(self.width, 3, dtype=self.dtype, name=f"in_{short}")
    values = convolution(features, mask)
    normal = nn.initializers.normal(0.02)
    if self.modality == "text":
      table = self.param(f"miss_{short}", normal, (self.width,))[None]
    else:
      table = self.param(f"id_{short}", normal, (self.num_codes + 1, self.width))
    table = table.astype(self.dtype)
    if codes is None:
      values = values + jnp.where(lost[..., None], table[-1][None, None], 0.0)
    else:
      # An unknown code is the filler's, as in the tables of CENet.
      known = (codes >= 0) & (codes < self.num_codes) & ~lost
      values = values + table[jnp.where(known, codes, self.num_codes)]
    norm = nn.LayerNorm(
      epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name=f"ln_in_{short}"
    )
    dropout = Dropout(self.dropout, self.deterministic, name=self.dropout_name)
    return jnp.where(mask[..., None], dropout(norm(values)), 0.0)


def pool(
  sequences: Sequence[Float[Array, "b t d"]], mask: Bool[Array, "b t m"]
) -> Float[Array, "b m d"]:
  """Mean over the real steps of each modality."""
  means = [
    masked_mean(values, mask[..., slot, None], axis=1)
    for slot, values in enumerate(sequences)
  ]
  return jnp.stack(means, axis=1)
