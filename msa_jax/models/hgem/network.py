"""The H-GEM network: three expert layers and four cascaded gates.

The layers share the network's scope, so that parameter names at the top level are flat
and reports can group them by prefix (input plumbing, layers, gates, head).
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from msa_jax.errors import UserError
from msa_jax.models.hgem.constant_fusion import ConstantFusion
from msa_jax.models.hgem.embedding import (
  ModalityEmbedding,
  Streams,
  check_batch,
  pool,
  read_streams,
  share_scope,
)
from msa_jax.models.hgem.fusion_layer import FusionLayer
from msa_jax.models.hgem.head import Head
from msa_jax.models.hgem.modality_layer import ModalityLayer
from msa_jax.models.hgem.options import (
  FUSION_EXPERTS,
  AudioExpertConfig,
  DenseExpertConfig,
  DropoutRates,
  GateConfig,
  PolarityExpertConfig,
  RobustExpertConfig,
  SparseExpertConfig,
  TextExpertConfig,
  VisionExpertConfig,
  check_disabled,
)
from msa_jax.models.hgem.polarity_layer import (
  PolarityLayer,
  num_route_classes,
  polarity_names,
)
from msa_jax.models.options import check
from msa_jax.models.outputs import REGRESSION, OutputSpec
from msa_jax.typing import Batch, ModelOutput, Routing

_CHOICES = {
  "fusion": ("multi", "single", "average", "fixed"),
  "missing_mode": ("mask", "embed"),
  "dispatch": ("dense", "capacity"),
  "dtype": ("float32", "bfloat16"),
}
_SIZES = ("token_dim", "fused_dim", "max_steps", "num_heads", "num_codes", "head_dim")


class HGEM(nn.Module):
  """Hierarchical gated expert mixture.

  >>> model = HGEM()
  >>> variables = model.init(jax.random.key(0), batch)
  >>> model.apply(variables, batch).predictions["sentiment"].shape
  (6,)

  Defaults are a narrow network for laptops; `system.options("paper")` has the sizes of
  the paper. Hide before what a batch lacks (`layers.hide_unavailable` with
  `keep_lost=True`); runs do.

  Attributes:
    output: the task predicted.
    modalities: names, in order; () = those of the batch.
    token_dim: width D of the tokens of all modalities.
    fused_dim: width d after fusion.
    max_steps: greatest number of steps.
    num_heads: attention heads; divides `token_dim`.
    num_codes: cluster codes of audio and vision frames, used where a batch has them.
    text_expert, vision_expert, audio_expert: the experts of layer 1.
    sparse_expert, dense_expert, robust_expert: the experts of layer 2.
    polarity_experts: the experts of layer 3.
    gates: the four gates.
    info_guided_fusion: whether Gate 3 adds the sparse expert's states (Eq. 12).
    info_guided_norm: whether those states are normalised; else they start 3 to 20
      times as large as what they are added to.
    head_dim: hidden width of the head.
    dropout: rates by site.
    route_temperature: tau of the routes' information loss (Eq. 11), above 0.
    fusion: `multi` is the whole network; `single` has layer 2 alone, `average` and
      `fixed` constant weights of the modalities (the paper's table 3).
    disabled_experts: names of modalities, fusion or polarity experts left out.
    missing_mode: `mask` hides a modality that a sample lacks; `embed` puts the
      embedding of lost content in its place (Eq. 2).
    dispatch: `dense` runs every polarity expert on every sample, `capacity` those
      selected, in static buffers.
    capacity_factor: slack of the buffers over an even load.
    dtype: compute type, `float32` or `bfloat16`; parameters, gates and norms'
      statistics are float32.

  Raises:
    UserError: a value out of range.

  Source: H-GEM, Computer Systems & Applications 2026, 35(3):59-68, Eq. 1-12.
  """

  output: OutputSpec = REGRESSION
  modalities: tuple[str, ...] = ()
  token_dim: int = 64
  fused_dim: int = 32
  max_steps: int = 50
  num_heads: int = 2
  num_codes: int = 16
  text_expert: TextExpertConfig = TextExpertConfig()
  vision_expert: VisionExpertConfig = VisionExpertConfig()
  audio_expert: AudioExpertConfig = AudioExpertConfig()
  sparse_expert: SparseExpertConfig = SparseExpertConfig()
  dense_expert: DenseExpertConfig = DenseExpertConfig()
  robust_expert: RobustExpertConfig = RobustExpertConfig()
  polarity_experts: PolarityExpertConfig = PolarityExpertConfig()
  gates: GateConfig = GateConfig()
  info_guided_fusion: bool = True
  info_guided_norm: bool = True
  head_dim: int = 32
  dropout: DropoutRates = DropoutRates()
  route_temperature: float = 0.12
  fusion: str = "multi"
  disabled_experts: tuple[str, ...] = ()
  missing_mode: str = "mask"
  dispatch: str = "dense"
  capacity_factor: float = 1.25
  dtype: str = "float32"

  def __post_init__(self):
    above_zero = ("route_temperature", "capacity_factor")
    check(self, choices=_CHOICES, positive=_SIZES, above_zero=above_zero)
    if self.token_dim % self.num_heads:
      raise UserError(
        f"model.num_heads={self.num_heads} must divide model.token_dim={self.token_dim}"
      )
    if not self.route_temperature > 0.0:
      raise UserError(
        f"model.route_temperature={self.route_temperature} must be above 0"
      )
    if self.modalities:
      self._check_disabled(self.modalities)
    super().__post_init__()

  @property
  def polarities(self) -> tuple[str, ...]:
    """Names of the polarity experts."""
    return polarity_names(self.output, self.polarity_experts.num_experts)

  @nn.compact
  def __call__(self, batch: Batch, *, train: bool = False) -> ModelOutput:
    """Predicts one task.

    Modalities may differ in their number of steps: shorter ones are padded, and step
    i of each is taken to be the same moment (align features beforehand).

    Returns:
      `predictions`: the task's. `features`: pooled representation of each modality
      [b D], `z_fused`, `r`, `H_fusion`, `fused` (the head's input) [b d],
      `class_scores` [b c]. `routing`: `gate0` (modalities), `gate1` (sparse, dense,
      robust), `gate2` and `gate3` (polarities). `losses`: `denoising`. What an
      ablation leaves out is zero.

    Raises:
      UserError: the batch lacks a modality or is too long.
    """
    names = self.modalities or batch.order
    check_batch(batch, names, self.max_steps)
    self._check_disabled(names)
    common = {"deterministic": not train, "dtype": jnp.dtype(self.dtype)}
    streams = read_streams(
      batch, names, self.missing_mode == "embed", self.disabled_experts
    )
    mask = streams.mask
    seen = jnp.any(mask, axis=1)  # [b m]
    tokens = self._embed(names, streams, common)
    routing, features, losses = self._blank(names, len(seen))
    if self.fusion in ("average", "fixed"):
      pooled = pool(tokens, mask)  # [b m d]
      constant = ConstantFusion(names, self.fused_dim, self.fusion, common["dtype"])
      fused, routing["gate0"] = share_scope(self, constant)(pooled, seen)
      features["z_fused"] = fused.astype(jnp.float32)
    else:
      scale = None
      if self.fusion == "multi":
        first = self._modality_layer(names, common)(tokens, mask)
        tokens, routing["gate0"] = first.hidden, first.routing
        scale = first.scale if self.gates.modality_scale == "tokens" else None
      pooled = pool(tokens, mask)
      second = self._fusion_layer(names, common)(tokens, mask, scale)
      routing["gate1"], losses["denoising"] = second.routing, second.denoising
      features["z_fused"] = fused = second.fused
      if self.fusion == "multi":
        layer = self._polarity_layer(common)
        third = layer(fused, second.summaries, seen, batch.sample_mask)
        routing["gate2"], routing["gate3"] = third.prior, third.routing
        features["r"], features["H_fusion"] = third.mixed, third.sparse
        features["class_scores"], fused = third.class_scores, third.fused
    for slot, name in enumerate(names):
      features[name] = pooled[:, slot].astype(jnp.float32)
    features["fused"] = fused.astype(jnp.float32)
    prediction = self._head(names, common)(fused)
    return ModelOutput({self.output.name: prediction}, features, routing, losses)

  @nn.nowrap
  def _check_disabled(self, modalities: tuple[str, ...]) -> None:
    check_disabled(self.disabled_experts, modalities, FUSION_EXPERTS, self.polarities)

  @nn.nowrap
  def _embed(self, names, streams: Streams, common) -> list[Float[Array, "b t d"]]:
    tokens = []
    for slot, name in enumerate(names):
      embedding = ModalityEmbedding(
        name,
        self.token_dim,
        self.num_codes,
        self.dropout.embed,
        dropout_name=f"Dropout_{slot}",
        **common,
      )
      mask, lost = streams.mask[..., slot], streams.lost[..., slot]
      embed = share_scope(self, embedding)
      tokens.append(embed(streams.features[slot], mask, lost, streams.codes[slot]))
    return tokens

  @nn.nowrap
  def _modality_layer(self, names, common) -> ModalityLayer:
    layer = ModalityLayer(
      names,
      self.token_dim,
      self.max_steps,
      self.num_heads,
      self.text_expert,
      self.vision_expert,
      self.audio_expert,
      self.gates.hidden_dims[0],
      self.gates.modality_scale == "outputs",
      self.dropout,
      **common,
    )
    return share_scope(self, layer)

  @nn.nowrap
  def _fusion_layer(self, names, common) -> FusionLayer:
    layer = FusionLayer(
      names,
      self.token_dim,
      self.fused_dim,
      self.max_steps,
      self.num_heads,
      self.sparse_expert,
      self.dense_expert,
      self.robust_expert,
      self.info_guided_fusion and self.info_guided_norm and self.fusion == "multi",
      self.disabled_experts,
      self.gates.hidden_dims[1],
      self.gates.modality_scale == "tokens",
      self.gates.fusion_top_k,
      self.dropout,
      first_dropout=len(names),
      **common,
    )
    return share_scope(self, layer)

  @nn.nowrap
  def _polarity_layer(self, common) -> PolarityLayer:
    layer = PolarityLayer(
      self.polarities,
      self.polarity_experts,
      num_route_classes(self.output),
      self.disabled_experts,
      (self.gates.hidden_dims[2], self.gates.hidden_dims[3]),
      self.gates.num_units,
      self.gates.polarity_top_k,
      self.info_guided_fusion,
      self.dispatch,
      self.capacity_factor,
      self.dropout,
      **common,
    )
    return share_scope(self, layer)

  @nn.nowrap
  def _head(self, names, common) -> Head:
    # Dropout modules are numbered in the order of use: modalities, experts, head.
    number = len(names)
    if self.fusion in ("multi", "single"):
      number += sum(n not in self.disabled_experts for n in ("dense", "robust"))
    head = Head(
      self.output,
      self.head_dim,
      self.dropout.head,
      dropout_name=f"Dropout_{number}",
      **common,
    )
    return share_scope(self, head)

  @nn.nowrap
  def _blank(self, names: tuple[str, ...], n_batch: int):
    """Routing, features and losses of a model without any of its layers."""
    polarities = self.polarities
    gates = (names, FUSION_EXPERTS, polarities, polarities)
    routing = {}
    for index, experts in enumerate(gates):
      zeros = jnp.zeros((n_batch, len(experts)))
      routing[f"gate{index}"] = Routing(zeros, zeros, zeros, experts)
    features = {n: jnp.zeros((n_batch, self.fused_dim)) for n in ("r", "H_fusion")}
    features["class_scores"] = jnp.zeros((n_batch, num_route_classes(self.output)))
    return routing, features, {"denoising": jnp.zeros(())}
