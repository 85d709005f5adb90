"""The DERL network: two encoders per modality, exchanging between layers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.layers.attention import LAYER_NORM_EPSILON
from msa_jax.layers.convolution import MaskedConvolution
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import hide_unavailable, masked_mean
from msa_jax.layers.normalization import MaskedBatchNorm
from msa_jax.layers.positions import LearnedPositions, sinusoids
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
from msa_jax.models.outputs import OutputSpec, shape_predictions
from msa_jax.typing import MODALITIES, Batch, ModelOutput, modality_order

Options = ml_collections.FrozenConfigDict
Streams = Mapping[str, Array]

# Streams whose lengths differ by no more than this factor are padded to one length.
_NEARLY_EQUAL = 4 / 3


class EncodedStreams(NamedTuple):
  """Which modalities each encoder encodes."""

  cross: tuple[str, ...]
  intra: tuple[str, ...]


def expected_modalities(modalities: tuple[str, ...]) -> tuple[str, ...]:
  """The paper's three and any others of the corpus, in canonical order."""
  return modality_order({*MODALITIES, *modalities})


def encoded_streams(variant: str, modalities: tuple[str, ...]) -> EncodedStreams | None:
  """EncodedStreams of a variant (Table 4 of the paper), or None if it is unknown.

  `full`; `ie_` with the initials of the modalities encoded (`ie_t`, `ie_tav`);
  `cie_all`, or `cie_` with the order of one target and its sources (`cie_tav`,
  `cie_atv`, `cie_vta`).
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
  }.get(variant)


class DERL(nn.Module):
  """Dual encoder representation learning.

  Attributes:
    options: `config.model`, frozen.
    modalities: names in canonical order; the number of slots m.
    lengths: (name, steps) pairs, sizes of learned position tables.
    target: the task predicted.
    dtype: compute type; parameters, probabilities, norms' statistics and the head
      are float32.
    stacked: False = never run the modalities as one computation.

  Source: DERL, Computer Systems & Applications 2024, 33(4), Eq. 2-27.
  """

  options: Options
  modalities: tuple[str, ...]
  lengths: tuple[tuple[str, int], ...]
  target: OutputSpec
  dtype: Any = jnp.float32
  stacked: bool = True

  @nn.compact
  def __call__(self, batch: Batch, *, train: bool) -> ModelOutput:
    """Predicts one task; modalities may have different lengths.

    Modalities of (nearly) equal length run as one computation, others one by one,
    with the same result.

    Returns:
      `predictions`: the task's. `features`: `M_<modality>` and `H_<modality>`, the
      streams of the cross-modal and the intra-modal encoder [b t d], `F_<modality>`,
      their pooled sum [b d]; a stream that the variant leaves out is missing.
      `losses`: `dis` (Eq. 24). Attention, enhancement and filter maps are sown into
      `intermediates`.
    """
    streams, masks = self._read(batch)
    embedded = {
      name: self._embed(
        name, streams[name], masks[name], batch.modalities[name].mask.shape[1], train
      )
      for name in self.modalities
    }
    common, private = self._encode(embedded, masks, train)
    order = modality_order({*common, *private})
    fused = {}  # F of each encoded modality [b t d], Eq. 23
    for name in order:
      parts = [each[name] for each in (common, private) if name in each]
      fused[name] = sum(parts[1:], start=parts[0]).astype(jnp.float32)
    pooled = {name: self._pool(fused[name], masks[name]) for name in order}
    per_sample = self._dissimilarity(fused, pooled, masks)
    features = {f"F_{name}": pooled[name] for name in order}
    for letter, each in (("M", common), ("H", private)):
      for name, values in each.items():
        steps = batch.modalities[name].mask.shape[1]
        features[f"{letter}_{name}"] = values[:, :steps].astype(jnp.float32)
    return ModelOutput(
      predictions={self.target.name: self._predict(fused, pooled, masks)},
      features=features,
      routing={},
      losses={"dis": masked_average(per_sample, batch.sample_mask)},
    )

  @nn.nowrap
  def _read(self, batch: Batch) -> tuple[Streams, Streams]:
    """Features [b t d] and masks [b t]; nearly equal lengths become equal."""
    batch = hide_unavailable(batch)
    steps = [batch.modalities[name].mask.shape[1] for name in self.modalities]
    longest = max(steps)
    pad = longest <= _NEARLY_EQUAL * min(steps)
    streams, masks = {}, {}
    for name, length in zip(self.modalities, steps, strict=True):
      missing = ((0, 0), (0, longest - length if pad else 0))
      modality = batch.modalities[name]
      streams[name] = jnp.pad(modality.features, (*missing, (0, 0)))
      masks[name] = jnp.pad(modality.mask, missing)
    return streams, masks

  @nn.nowrap
  def _embed(
    self, name: str, values: Array, mask: Array, n_steps: int, train: bool
  ) -> Array:
    """Z: convolution, normalisation and positions (Eq. 2-4) of `n_steps` steps."""
    options = self.options
    if name == "text":
      values = Dropout(options.dropout.text, not train)(values)
    kernel_size = options.kernels[expected_modalities(self.modalities).index(name)]
    values = MaskedConvolution(
      options.d, kernel_size, dtype=self.dtype, kernel_init=XAVIER, name=f"conv_{name}"
    )(values, mask)
    if options.input_norm == "batch":
      norm = MaskedBatchNorm(not train, dtype=self.dtype, name=f"norm_{name}")
      values = norm(values, mask)
    elif options.input_norm == "layer":
      norm = nn.LayerNorm(
        epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name=f"norm_{name}"
      )
      values = norm(values)
    if options.pe == "learned":
      positions = LearnedPositions(
        dict(self.lengths)[name], options.d, name=f"positions_{name}"
      )(n_steps)
      positions = jnp.pad(positions, ((0, mask.shape[1] - n_steps), (0, 0)))
    else:
      positions = jnp.asarray(sinusoids(mask.shape[1], options.d))
    values = values + positions.astype(self.dtype)[None]
    return jnp.where(mask[..., None], values, 0.0)

  @nn.nowrap
  def _encode(
    self, embedded: Streams, masks: Streams, train: bool
  ) -> tuple[Streams, Streams]:
    """Runs the layers; the common (M) and the private (H) streams of the last one.

    All streams of a layer read those of the layer before.
    """
    options = self.options
    targets = encoded_streams(options.variant, self.modalities)
    common = dict(embedded)  # S: what the cross-modal encoder reads
    private = dict(embedded)  # R: what the intra-modal encoder reads
    units = {}
    for number in range(1, options.n_layers + 1):
      sources = common if options.cie_source == "enhanced" else embedded
      m = self._cross(number, targets.cross, common, sources, masks, train)
      h = self._intra(number, targets.intra, private, masks, train)
      gated = options.variant == "full" and (
        number < options.n_layers or options.gate_last
      )
      if gated:
        m, h = self._exchange(number, units, m, h, masks, train)
      common, private = {**common, **m}, {**private, **h}
    return (
      {name: common[name] for name in targets.cross},
      {name: private[name] for name in targets.intra},
    )

  @nn.nowrap
  def _layer(self, attends: tuple[bool, ...], train: bool) -> EncoderLayer:
    options = self.options
    return EncoderLayer(
      n_heads=options.n_heads,
      ffn=options.ffn_mult * options.d,
      attends=attends,
      attention_dropout=options.dropout.attn,
      residual_dropout=options.dropout.res,
      ffn_dropout=options.dropout.ffn,
      norm_style=options.norm_style,
      scale=attention_scale(options.attn_scale, options.d, options.n_heads),
      deterministic=not train,
      dtype=self.dtype,
      parent=None,
    )

  @nn.nowrap
  def _bank(self, layer: nn.Module, names: tuple[str, ...], name: str, shared=False):
    return ModalityBank(layer, names, shared, self.stacked, name=name)

  @nn.nowrap
  def _cross(self, number, targets, queries, sources, masks, train) -> Streams:
    """Cross-modal interaction encoder: M of every target (Eq. 5-11)."""
    if not targets:
      return {}
    expected = expected_modalities(self.modalities)
    inputs = []
    stages = [
      [source if source in self.modalities else None for source in expected]
      for _ in targets
    ]
    for target, row in zip(targets, stages, strict=True):
      row.pop(expected.index(target))
    # A stage whose source the corpus lacks for every target has no attention.
    attends = tuple(any(column) for column in zip(*stages, strict=True))
    for target, row in zip(targets, stages, strict=True):
      kept = [source for source, used in zip(row, attends, strict=True) if used]
      values, values_masks = [], []
      for source in kept:
        # In place of a source that is not there: anything, fully masked.
        values.append(sources[source or target])
        mask = masks[source or target]
        values_masks.append(mask if source else jnp.zeros_like(mask))
      inputs.append(
        (queries[target], masks[target], tuple(values), tuple(values_masks))
      )
    bank = self._bank(self._layer(attends, train), targets, f"cross_{number}")
    return dict(zip(targets, bank(inputs), strict=True))

  @nn.nowrap
  def _intra(self, number, targets, streams, masks, train) -> Streams:
    """Intra-modal encoder: H of every target (Eq. 12-15)."""
    if not targets:
      return {}
    bank = self._bank(self._layer((True,), train), targets, f"intra_{number}")
    outputs = bank([(streams[name], masks[name]) for name in targets])
    return dict(zip(targets, outputs, strict=True))

  @nn.nowrap
  def _exchange(self, number, units, common, private, masks, train):
    """Enhancement and filter unit, both from the same M and H (Eq. 16-22).

    Args:
      units: the shared units, once made, by name.
    """
    options, names = self.options, self.modalities
    inputs = [(common[name], private[name], masks[name]) for name in names]
    layers = {}
    if options.use_eu:
      layers["enhance"] = EnhancementUnit(
        options.eu_norm, options.dropout.eu, not train, self.dtype, parent=None
      )
    if options.use_fu:
      layers["filter"] = FilterUnit(dtype=self.dtype, parent=None)
    outputs = {}
    for unit, layer in layers.items():
      if options.share_gates:
        if unit not in units:
          units[unit] = self._bank(layer, names, unit, shared=True)
        bank = units[unit]
      else:
        bank = self._bank(layer, names, f"{unit}_{number}")
      outputs[unit] = dict(zip(names, bank(inputs), strict=True))
    return outputs.get("enhance", common), outputs.get("filter", private)

  @nn.nowrap
  def _pool(
    self, values: Float[Array, "b t d"], mask: Bool[Array, "b t"]
  ) -> Float[Array, "b d"]:
    """Mean over the real steps, or the first or last of them; zero without any."""
    pool = self.options.pool
    if pool in ("mean", "after_mlp"):
      return masked_mean(values, mask[..., None], axis=1)
    n_steps = mask.shape[1]
    if pool == "first":
      step = jnp.argmax(mask, axis=1)
    else:
      step = n_steps - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    chosen = mask & (jnp.arange(n_steps)[None] == step[:, None])
    return jnp.sum(jnp.where(chosen[..., None], values, 0.0), axis=1)

  @nn.nowrap
  def _dissimilarity(self, fused, pooled, masks) -> Float[Array, " b"]:
    """Mean distance over the pairs of modalities a sample has (Eq. 24)."""
    order = modality_order(fused)
    if self.options.dis == "token_l2":
      self._require_equal_lengths(fused, "dis='token_l2'")
      vectors = jnp.stack([fused[name] for name in order], axis=1)  # [b m t d]
      present = jnp.stack([masks[name] for name in order], axis=1)  # [b m t]
      return pairwise_distance(vectors, present, "l2")
    vectors = jnp.stack([pooled[name] for name in order], axis=1)  # [b m d]
    present = jnp.stack([jnp.any(masks[name], axis=1) for name in order], axis=1)
    return pairwise_distance(vectors, present, self.options.dis)

  @nn.nowrap
  def _predict(self, fused, pooled, masks) -> Array:
    """Concatenation, two linear layers, output layer (Eq. 25-27)."""
    per_step = self.options.pool == "after_mlp"
    if per_step:
      self._require_equal_lengths(fused, "pool='after_mlp'")
    parts = fused if per_step else pooled
    example = next(iter(parts.values()))
    columns = []
    for name in self.modalities:
      part = parts.get(name, jnp.zeros_like(example))
      columns.append(jnp.where(masks[name][..., None], part, 0.0) if per_step else part)
    hidden = jnp.concatenate(columns, axis=-1)  # [b d*m] or [b t d*m]
    width = hidden.shape[-1]
    hidden = nn.relu(dense(width, jnp.float32, "head_1")(hidden))
    hidden = dense(width, jnp.float32, "head_2")(hidden)
    result = dense(self.target.num_outputs, jnp.float32, "head_out")(hidden)
    if per_step:
      steps = jnp.any(jnp.stack([masks[name] for name in fused]), axis=0)  # [b t]
      result = masked_mean(result, steps[..., None], axis=1)
    return shape_predictions(self.target, result)

  @nn.nowrap
  def _require_equal_lengths(self, streams: Streams, option: str) -> None:
    lengths = {name: values.shape[1] for name, values in streams.items()}
    if len(set(lengths.values())) > 1:
      raise UserError(
        f"model.{option} needs modalities of equal length, these have {lengths}:"
        " align them (config.data.align=pool) or choose another value"
      )
