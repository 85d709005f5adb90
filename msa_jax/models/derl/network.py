"""The DERL network: two encoders per modality, exchanging between layers."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.layers.convolution import MaskedConvolution
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import masked_mean
from msa_jax.layers.normalization import MaskedBatchNorm
from msa_jax.layers.positions import sinusoids
from msa_jax.losses.consistency import pairwise_distance
from msa_jax.losses.task import masked_average
from msa_jax.models.derl.parts import (
  XAVIER,
  EncoderLayer,
  EnhancementUnit,
  FilterUnit,
  ModalityBank,
  attention_scale,
  dense,
)
from msa_jax.models.options import check
from msa_jax.models.outputs import REGRESSION, OutputSpec, shape_predictions
from msa_jax.typing import MODALITIES, Batch, ModelOutput, modality_order

Streams = Mapping[str, Array]

VARIANTS = (
  "full",
  *("ie_t", "ie_a", "ie_v", "ie_tav"),
  *("cie_tav", "cie_atv", "cie_vta", "cie_all"),
)
# Streams whose lengths differ by no more than this factor are padded to one length.
_NEARLY_EQUAL = 4 / 3


class EncodedStreams(NamedTuple):
  """Which modalities each encoder encodes."""

  cross: tuple[str, ...]
  intra: tuple[str, ...]


def expected_modalities(modalities: tuple[str, ...]) -> tuple[str, ...]:
  """The paper's three and any others of the corpus, in canonical order."""
  return modality_order({*MODALITIES, *modalities})


def encoded_streams(variant: str, modalities: tuple[str, ...]) -> EncodedStreams:
  """Modalities that a variant encodes (Table 4 of the paper).

  Args:
    variant: `full`; `ie_` with the initials of the modalities encoded (`ie_t`,
      `ie_tav`); `cie_all`, or `cie_` with the order of one target and its sources
      (`cie_tav`, `cie_atv`, `cie_vta`).
    modalities: those of the corpus.
  """
  text, audio, vision = MODALITIES
  return {
    "full": EncodedStreams(modalities, modalities),
    "ie_t": EncodedStreams((), (text,)),
    "ie_a": EncodedStreams((), (audio,)),
    "ie_v": EncodedStreams((), (vision,)),
    "ie_tav": EncodedStreams((), modalities),
    "cie_tav": EncodedStreams((text,), ()),
    "cie_atv": EncodedStreams((audio,), ()),
    "cie_vta": EncodedStreams((vision,), ()),
    "cie_all": EncodedStreams(modalities, ()),
  }[variant]


@dataclasses.dataclass(frozen=True)
class DropoutRates:
  """Dropout rates by site, each in [0, 1).

  Attributes:
    text: of the text features.
    attention: of the attention probabilities.
    residual: of what an encoder layer adds to the residual stream.
    ffn: of the hidden layer of its feed-forward part.
    enhancement: of the enhancement unit's map (Eq. 20).

  Raises:
    UserError: a rate outside [0, 1).
  """

  text: float = 0.0
  attention: float = 0.1
  residual: float = 0.1
  ffn: float = 0.1
  enhancement: float = 0.1

  def __post_init__(self):
    names = tuple(field.name for field in dataclasses.fields(self))
    check(self, "model.dropout", rates=names)


class DERL(nn.Module):
  """Dual encoder representation learning.

  Defaults are the paper's sizes for MOSI.

  Attributes:
    output: the task predicted.
    modalities: those used; () = all of the batch.
    hidden_dim: width d of all streams; even, a multiple of `num_heads`.
    num_heads: attention heads.
    num_layers: layers of both encoders.
    ffn_multiplier: hidden width of the feed-forward parts over `hidden_dim`.
    kernel_sizes: steps of the input convolutions of text, audio, vision and any other
      modality, in this order.
    attention_scale: `head` = 1 / sqrt(width of a head), `model` = 1 / sqrt(hidden_dim)
      (Eq. 5 literally).
    use_enhancement: whether enhancement units act between layers (Eq. 16-20).
    use_filter: whether filter units act between layers (Eq. 21-22).
    variant: encoders and modalities used, one of `VARIANTS`; see `encoded_streams`.
    pooling: `mean` over the real steps, then the head; or `after_mlp`, the head at
      every step, then the mean (Eq. 25-27 literally; needs equal lengths).
    dropout: rates by site.
    dtype: compute type, `float32` or `bfloat16`; parameters, probabilities, norms'
      statistics and the head are float32.
    stacked: False = never run the modalities as one computation.

  Raises:
    UserError: a value out of range.

  Source: DERL, Computer Systems & Applications 2024, 33(4), Eq. 2-27.
  """

  output: OutputSpec = REGRESSION
  modalities: tuple[str, ...] = ()
  hidden_dim: int = 50
  num_heads: int = 10
  num_layers: int = 2
  ffn_multiplier: int = 4
  kernel_sizes: tuple[int, ...] = (3, 3, 3)
  attention_scale: str = "head"
  use_enhancement: bool = True
  use_filter: bool = True
  variant: str = "full"
  pooling: str = "mean"
  dropout: DropoutRates = DropoutRates()
  dtype: str = "float32"
  stacked: bool = True

  def __post_init__(self):
    check(
      self,
      choices={
        "attention_scale": ("head", "model"),
        "variant": VARIANTS,
        "pooling": ("mean", "after_mlp"),
        "dtype": ("float32", "bfloat16"),
      },
      positive=("hidden_dim", "num_heads", "num_layers", "ffn_multiplier"),
    )
    if self.hidden_dim % self.num_heads:
      raise UserError(
        f"model.num_heads={self.num_heads} must divide"
        f" model.hidden_dim={self.hidden_dim}"
      )
    if self.hidden_dim % 2:
      raise UserError(f"model.hidden_dim={self.hidden_dim} must be even")
    super().__post_init__()

  @nn.compact
  def __call__(self, batch: Batch, *, train: bool = False) -> ModelOutput:
    """Predicts one task; modalities may have different lengths.

    Modalities of (nearly) equal length run as one computation, others one by one,
    with the same result.

    Args:
      batch: utterances, absent content hidden (`hide_unavailable`).
      train: whether dropout and the batch's own statistics are used.

    Returns:
      `predictions`: the task's. `features`: `M_<modality>` and `H_<modality>`, the
      streams of the cross-modal and the intra-modal encoder [b t d], `F_<modality>`,
      their pooled sum [b d]; a stream that the variant leaves out is missing.
      `losses`: `dissimilarity` (Eq. 24). Attention, enhancement and filter maps are
      sown into `intermediates`.

    Raises:
      UserError: modalities that the batch, or sizes that the model lacks.
    """
    names = modality_order(self.modalities or batch.modalities)
    check_modalities(self, names, batch.order)
    streams, masks = self._read(batch, names)
    embedded = {
      name: self._embed(name, streams[name], masks[name], size, train)
      for name, size in _sizes(self.kernel_sizes, names).items()
    }
    common, private = self._encode(embedded, masks, train)
    order = modality_order({*common, *private})
    fused = {}  # F of each encoded modality [b t d], Eq. 23
    for name in order:
      parts = [each[name] for each in (common, private) if name in each]
      fused[name] = sum(parts[1:], start=parts[0]).astype(jnp.float32)
    pooled = {
      name: masked_mean(fused[name], masks[name][..., None], axis=1) for name in order
    }
    per_sample = _dissimilarity(pooled, masks)
    features = {f"F_{name}": pooled[name] for name in order}
    for letter, each in (("M", common), ("H", private)):
      for name, values in each.items():
        steps = batch.modalities[name].mask.shape[1]
        features[f"{letter}_{name}"] = values[:, :steps].astype(jnp.float32)
    return ModelOutput(
      predictions={self.output.name: self._predict(fused, pooled, masks)},
      features=features,
      losses={"dissimilarity": masked_average(per_sample, batch.sample_mask)},
    )

  @nn.nowrap
  def _read(self, batch: Batch, names: tuple[str, ...]) -> tuple[Streams, Streams]:
    """Features [b t d] and masks [b t]; nearly equal lengths become equal."""
    steps = [batch.modalities[name].mask.shape[1] for name in names]
    longest = max(steps)
    pad = longest <= _NEARLY_EQUAL * min(steps)
    streams, masks = {}, {}
    for name, length in zip(names, steps, strict=True):
      missing = ((0, 0), (0, longest - length if pad else 0))
      modality = batch.modalities[name]
      streams[name] = jnp.pad(modality.features, (*missing, (0, 0)))
      masks[name] = jnp.pad(modality.mask, missing)
    return streams, masks

  @nn.nowrap
  def _embed(
    self, name: str, values: Array, mask: Array, kernel_size: int, train: bool
  ) -> Array:
    """Z: convolution, batch normalisation and positions (Eq. 2-4)."""
    dtype = jnp.dtype(self.dtype)
    if name == "text":
      values = Dropout(self.dropout.text, not train)(values)
    values = MaskedConvolution(
      self.hidden_dim, kernel_size, dtype=dtype, kernel_init=XAVIER, name=f"conv_{name}"
    )(values, mask)
    norm = MaskedBatchNorm(not train, dtype=dtype, name=f"norm_{name}")
    positions = jnp.asarray(sinusoids(mask.shape[1], self.hidden_dim))
    values = norm(values, mask) + positions.astype(dtype)[None]
    return jnp.where(mask[..., None], values, 0.0)

  @nn.nowrap
  def _encode(
    self, embedded: Streams, masks: Streams, train: bool
  ) -> tuple[Streams, Streams]:
    """Runs the layers; the common (M) and the private (H) streams of the last one.

    All streams of a layer read those of the layer before, exchanged by the units.
    """
    targets = encoded_streams(self.variant, tuple(masks))
    common, private = dict(embedded), dict(embedded)
    for number in range(1, self.num_layers + 1):
      m = self._cross(number, targets.cross, common, masks, train)
      h = self._intra(number, targets.intra, private, masks, train)
      if self.variant == "full" and number < self.num_layers:
        m, h = self._exchange(number, m, h, masks, train)
      common, private = {**common, **m}, {**private, **h}
    return (
      {name: common[name] for name in targets.cross},
      {name: private[name] for name in targets.intra},
    )

  @nn.nowrap
  def _layer(self, attends: tuple[bool, ...], train: bool) -> EncoderLayer:
    return EncoderLayer(
      num_heads=self.num_heads,
      ffn_dim=self.ffn_multiplier * self.hidden_dim,
      attends=attends,
      attention_dropout=self.dropout.attention,
      residual_dropout=self.dropout.residual,
      ffn_dropout=self.dropout.ffn,
      scale=attention_scale(self.attention_scale, self.hidden_dim, self.num_heads),
      deterministic=not train,
      dtype=jnp.dtype(self.dtype),
      parent=None,
    )

  @nn.nowrap
  def _cross(self, number, targets, streams, masks, train) -> Streams:
    """Cross-modal interaction encoder: M of every target (Eq. 5-11)."""
    if not targets:
      return {}
    expected = expected_modalities(tuple(masks))
    stages = [
      [source if source in masks else None for source in expected if source != target]
      for target in targets
    ]
    # A stage whose source the corpus lacks for every target has no attention.
    attends = tuple(any(column) for column in zip(*stages, strict=True))
    inputs = []
    for target, row in zip(targets, stages, strict=True):
      kept = [source for source, used in zip(row, attends, strict=True) if used]
      values, values_masks = [], []
      for source in kept:
        # In place of a source that is not there: anything, fully masked.
        values.append(streams[source or target])
        mask = masks[source or target]
        values_masks.append(mask if source else jnp.zeros_like(mask))
      inputs.append(
        (streams[target], masks[target], tuple(values), tuple(values_masks))
      )
    layer = self._layer(attends, train)
    bank = ModalityBank(layer, targets, self.stacked, name=f"cross_{number}")
    return dict(zip(targets, bank(inputs), strict=True))

  @nn.nowrap
  def _intra(self, number, targets, streams, masks, train) -> Streams:
    """Intra-modal encoder: H of every target (Eq. 12-15)."""
    if not targets:
      return {}
    layer = self._layer((True,), train)
    bank = ModalityBank(layer, targets, self.stacked, name=f"intra_{number}")
    outputs = bank([(streams[name], masks[name]) for name in targets])
    return dict(zip(targets, outputs, strict=True))

  @nn.nowrap
  def _exchange(
    self, number: int, common: Streams, private: Streams, masks: Streams, train: bool
  ) -> tuple[Streams, Streams]:
    """Enhancement and filter unit, both from the same M and H (Eq. 16-22)."""
    names, dtype = tuple(masks), jnp.dtype(self.dtype)
    inputs = [(common[name], private[name], masks[name]) for name in names]
    layers = {}
    if self.use_enhancement:
      rate = self.dropout.enhancement
      layers["enhance"] = EnhancementUnit(rate, not train, dtype, parent=None)
    if self.use_filter:
      layers["filter"] = FilterUnit(dtype=dtype, parent=None)
    outputs = {}
    for unit, layer in layers.items():
      bank = ModalityBank(layer, names, self.stacked, name=f"{unit}_{number}")
      outputs[unit] = dict(zip(names, bank(inputs), strict=True))
    return outputs.get("enhance", common), outputs.get("filter", private)

  @nn.nowrap
  def _predict(self, fused: Streams, pooled: Streams, masks: Streams) -> Array:
    """Concatenation, two linear layers, output layer (Eq. 25-27)."""
    per_step = self.pooling == "after_mlp"
    if per_step:
      _require_equal_lengths(fused)
    parts = fused if per_step else pooled
    example = next(iter(parts.values()))
    columns = []
    for name, mask in masks.items():
      part = parts.get(name, jnp.zeros_like(example))
      columns.append(jnp.where(mask[..., None], part, 0.0) if per_step else part)
    hidden = jnp.concatenate(columns, axis=-1)  # [b d*m] or [b t d*m]
    width = hidden.shape[-1]
    hidden = nn.relu(dense(width, jnp.float32, "head_1")(hidden))
    hidden = dense(width, jnp.float32, "head_2")(hidden)
    result = dense(self.output.num_outputs, jnp.float32, "head_out")(hidden)
    if per_step:
      steps = jnp.any(jnp.stack([masks[name] for name in fused]), axis=0)  # [b t]
      result = masked_mean(result, steps[..., None], axis=1)
    return shape_predictions(self.output, result)


def check_modalities(
  model: DERL, names: tuple[str, ...], available: tuple[str, ...]
) -> None:
  """Checks a model against the modalities it shall read.

  Args:
    model: the network.
    names: modalities it uses.
    available: those of the batch or the corpus.

  Raises:
    UserError: some are not available, are needed by the variant, or have no kernel.
  """
  lacking = [name for name in names if name not in available]
  if lacking:
    raise UserError(f"model.modalities={names}: {lacking[0]} is not in {available}")
  expected, sizes = expected_modalities(names), model.kernel_sizes
  if len(sizes) != len(expected) or min(sizes) < 1:
    raise UserError(
      f"model.kernel_sizes={sizes}: give one positive size for each of {expected}"
    )
  targets = encoded_streams(model.variant, names)
  unknown = sorted({*targets.cross, *targets.intra} - set(names))
  if unknown:
    raise UserError(
      f"model.variant={model.variant!r} encodes {unknown[0]}; the corpus has {names}"
    )


def _sizes(kernel_sizes: tuple[int, ...], names: tuple[str, ...]) -> dict[str, int]:
  by_name = dict(zip(expected_modalities(names), kernel_sizes, strict=True))
  return {name: by_name[name] for name in names}


def _dissimilarity(pooled: Streams, masks: Streams) -> Float[Array, " b"]:
  """Mean distance over the pairs of modalities a sample has (Eq. 24)."""
  order = modality_order(pooled)
  vectors = jnp.stack([pooled[name] for name in order], axis=1)  # [b m d]
  present: Bool[Array, "b m"] = jnp.stack(
    [jnp.any(masks[name], axis=1) for name in order], axis=1
  )
  return pairwise_distance(vectors, present)


def _require_equal_lengths(streams: Streams) -> None:
  lengths = {name: values.shape[1] for name, values in streams.items()}
  if len(set(lengths.values())) > 1:
    raise UserError(
      "model.pooling='after_mlp' needs modalities of equal length, these have"
      f" {lengths}: align them (config.data.align=pool) or choose 'mean'"
    )
