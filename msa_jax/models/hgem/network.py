"""The H-GEM network: three expert layers and four cascaded gates.

Parameter names at the top level are flat, so that reports can group them by prefix
(input plumbing, layers, gates, head).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.layers.attention import LAYER_NORM_EPSILON
from msa_jax.layers.convolution import MaskedConvolution
from msa_jax.layers.masking import hide_unavailable, masked_mean
from msa_jax.layers.moe import (
  ExpertBank,
  capacity_of,
  combine_capacity,
  combine_dense,
  dispatch_capacity,
  plan_capacity,
  reweigh_capacity,
  scatter_capacity,
)
from msa_jax.losses.routing import vertex_cosine
from msa_jax.models.hgem.experts import (
  AudioExpert,
  PolarityExpert,
  TextExpert,
  VisionExpert,
)
from msa_jax.models.hgem.fusion import (
  FUSION_EXPERTS,
  Context,
  Options,
  dense_expert,
  robust_expert,
  sparse_expert,
)
from msa_jax.models.hgem.gates import Gate, OutputGate, SparseFusion, fuse_polarities
from msa_jax.models.outputs import OutputSpec, shape_predictions
from msa_jax.typing import Batch, ModelOutput, Routing

# How the three modalities of the paper appear in parameter names.
_SHORT = {"text": "t", "audio": "a", "vision": "v"}
_EXPERT = {"vision": "vis"}
# Ablation `fixed`: weight of each modality before renormalisation.
_FIXED_WEIGHTS = {"text": 0.5}
_OTHER_FIXED_WEIGHT = 0.25


class HGEM(nn.Module):
  """Hierarchical gated expert mixture.

  Attributes:
    options: `config.model`, frozen.
    modalities: names in canonical order; the number of slots m.
    target: the task predicted.
    n_route_classes: classes of the route losses.
    polarities: names of the polarity experts.
    dtype: compute type; parameters, gates and norms' statistics are float32.

  Source: H-GEM, Computer Systems & Applications 2026, 35(3):59-68, Eq. 1-12.
  """

  options: Options
  modalities: tuple[str, ...]
  target: OutputSpec
  n_route_classes: int
  polarities: tuple[str, ...]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, batch: Batch, *, train: bool) -> ModelOutput:
    """Predicts one task.

    Modalities may differ in their number of steps: shorter ones are padded, and step
    i of each is taken to be the same moment (align features beforehand).

    Returns:
      `predictions`: the task's. `features`: pooled representation of each modality
      [b D], `z_fused`, `r`, `H_fusion`, `fused` (the head's input) [b d], `mi_scores`
      [b c]. `routing`: `gate0` (modalities), `gate1` (sparse, dense, robust), `gate2`
      and `gate3` (polarities). `losses`: `den`. What an ablation leaves out is zero.
    """
    context = Context(self.options, not train, self.dtype)
    streams, mask, lost, codes = self._read(batch)
    seen = jnp.any(mask, axis=1)  # [b m]
    embedded = [
      self._embed(
        context, name, streams[slot], mask[..., slot], lost[..., slot], codes[slot]
      )
      for slot, name in enumerate(self.modalities)
    ]
    routing, features, losses = self._blank(seen)
    if self.options.fusion in ("average", "fixed"):
      weights = self._constant_weights(seen)
      # The whole weight of a modality is on the first expert of its family.
      shares = _spread(weights, self.options.experts_per_family)
      routing["gate0"] = Routing(shares, shares, jnp.zeros_like(shares))
      pooled = _pool(embedded, mask)  # [b m d]
      mean = jnp.einsum("bm,bmd->bd", weights, pooled.astype(jnp.float32))
      fused = context.dense(self.options.d, "fusion_dense")(mean.astype(self.dtype))
      features["z_fused"] = fused.astype(jnp.float32)
    else:
      hidden = embedded
      if self.options.fusion != "single":
        hidden, routing["gate0"] = self._modality_layer(context, embedded, mask, seen)
      pooled = _pool(hidden, mask)
      fused, summaries, routing["gate1"], losses["den"] = self._fusion_layer(
        context, hidden, pooled, mask, seen
      )
      features["z_fused"] = fused
      if self.options.fusion != "single":
        fused, parts, features["mi_scores"] = self._polarity_layer(
          context, fused, summaries, seen, batch.sample_mask
        )
        routing["gate2"], routing["gate3"], features["r"], features["H_fusion"] = parts
    for slot, name in enumerate(self.modalities):
      features[name] = pooled[:, slot].astype(jnp.float32)
    features["fused"] = fused.astype(jnp.float32)
    prediction = self._head(context, fused)
    return ModelOutput({self.target.name: prediction}, features, routing, losses)

  @nn.nowrap
  def _read(self, batch: Batch):
    """Features [b t d] per modality, masks and lost steps [b t m], codes or None."""
    batch = hide_unavailable(batch, keep_lost=True)
    n_steps = max(batch.modalities[n].mask.shape[1] for n in self.modalities)
    streams, masks, losts, codes = [], [], [], []
    for name in self.modalities:
      modality = batch.modalities[name]
      missing = ((0, 0), (0, n_steps - modality.mask.shape[1]))
      streams.append(jnp.pad(modality.features, (*missing, (0, 0))))
      masks.append(jnp.pad(modality.mask, missing))
      losts.append(jnp.pad(modality.lost, missing))
      code = modality.ids.get("codes") if name != "text" else None
      codes.append(None if code is None else jnp.pad(code, missing))
    mask, lost = jnp.stack(masks, axis=2), jnp.stack(losts, axis=2)  # [b t m]
    if self.options.missing_mode == "embed":
      steps = jnp.any(mask, axis=2, keepdims=True)
      absent = steps & ~jnp.any(mask, axis=1, keepdims=True)
      mask, lost = mask | absent, lost | absent
    used = jnp.array([n not in self.options.disabled_experts for n in self.modalities])
    mask = mask & used[None, None]
    return streams, mask, lost & mask, codes

  @nn.nowrap
  def _embed(self, context, name, values, mask, lost, codes) -> Array:
    """Convolution, codes or the embedding of lost content, layer norm (Eq. 2)."""
    options, width = self.options, self.options.D
    short = _SHORT.get(name, name)
    values = MaskedConvolution(width, 3, dtype=self.dtype, name=f"in_{short}")(
      values, mask
    )
    normal = nn.initializers.normal(0.02)
    if name == "text":
      table = self.param(f"miss_{short}", normal, (width,))[None]
    else:
      table = self.param(f"id_{short}", normal, (options.L_codes + 1, width))
      if options.av_input == "ids":
        values = jnp.zeros_like(values)
    table = table.astype(self.dtype)
    if name != "text" and self._use_codes(name, codes):
      # An unknown code is the filler's, as in the tables of CENet.
      known = (codes >= 0) & (codes < options.L_codes) & ~lost
      values = values + table[jnp.where(known, codes, options.L_codes)]
    else:
      values = values + jnp.where(lost[..., None], table[-1][None, None], 0.0)
    norm = nn.LayerNorm(
      epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name=f"ln_in_{short}"
    )
    values = context.dropout("embed")(norm(values))
    return jnp.where(mask[..., None], values, 0.0)

  @nn.nowrap
  def _use_codes(self, name: str, codes: Array | None) -> bool:
    options = self.options
    if options.av_input == "features" or options.use_ids == "never":
      return False
    if codes is None and (options.av_input == "ids" or options.use_ids == "always"):
      raise UserError(
        f"av_input={options.av_input!r}, use_ids={options.use_ids!r}: {name} has no"
        " cluster codes; make some or choose av_input='features'"
      )
    return codes is not None

  @nn.nowrap
  def _gate(self, context, name: str, n_units: int, n_out: int, k: int) -> Gate:
    options = self.options
    return Gate(
      hidden=options.gate.hidden[int(name[-1])],
      n_units=n_units,
      n_out=n_out,
      k=k,
      combine=options.gate.combine,
      dropout=options.dropout.gate,
      deterministic=context.deterministic,
      name=name,
    )

  @nn.nowrap
  def _modality_layer(self, context, embedded, mask, seen):
    """Layer 1 and Gate 0: the experts of each modality, their outputs rescaled.

    A family of several experts has one output layer and norm; its result is the mean
    of the experts' rescaled outputs.
    """
    options, n_slots = self.options, len(self.modalities)
    copies = options.experts_per_family
    candidates = jnp.repeat(seen, copies, axis=1)  # [b m*copies]
    gate = self._gate(
      context, "gate0", n_slots, n_slots * copies, options.gate0.k * copies
    )
    routing = gate(_pool(embedded, mask), seen, candidates)
    count = jnp.sum(candidates, axis=1, keepdims=True).astype(jnp.float32)
    scale = (count * routing.combine).astype(self.dtype)
    scale = scale.reshape(-1, n_slots, copies, 1, 1)
    hidden = []
    for slot, name in enumerate(self.modalities):
      short = _SHORT.get(name, name)
      project = context.dense(options.D, f"out_{short}")
      norm = nn.LayerNorm(
        epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name=f"ln_out_{short}"
      )
      results = []
      for copy in range(copies):
        values = embedded[slot]
        if options.gate0.apply in ("input", "both"):
          values = values * scale[:, slot, copy]
        expert = self._modality_expert(context.copied(copy), name)
        values = norm(project(expert(values, mask[..., slot])))
        if options.gate0.apply in ("output", "both"):
          values = values * scale[:, slot, copy]
        results.append(values)
      hidden.append(jnp.where(mask[..., slot, None], _mean(results), 0.0))
    return hidden, routing

  @nn.nowrap
  def _modality_expert(self, context, name: str) -> nn.Module:
    options = self.options
    label = context.name(f"L1_{_EXPERT.get(name, name)}")
    if name == "audio":
      return AudioExpert(
        options.audio_expert.lstm,
        options.audio_expert.conv_k,
        options.dropout.expert,
        context.deterministic,
        self.dtype,
        name=label,
      )
    own = options.text_expert if name == "text" else options.vision_expert
    shared = {
      "layers": own.layers,
      "ffn": own.ffn,
      "n_heads": options.n_heads,
      "attention_dropout": options.dropout.attn,
      "ffn_dropout": options.dropout.ffn,
      "deterministic": context.deterministic,
      "dtype": self.dtype,
    }
    if name == "text":
      return TextExpert(**shared, name=label)
    return VisionExpert(
      n_steps=options.T,
      kernel_size=own.conv_k,
      positions=own.pos == "learned",
      **shared,
      name=label,
    )

  @nn.nowrap
  def _fusion_layer(self, context, hidden, pooled, mask, seen):
    """Layer 2 and Gate 1: z_fused, the sparse summaries, routing, denoising loss."""
    options, n_batch = self.options, seen.shape[0]
    copies = options.experts_per_family
    n_experts = len(FUSION_EXPERTS) * copies
    used = [n not in options.disabled_experts for n in FUSION_EXPERTS]
    used = jnp.repeat(jnp.array(used), copies)
    available = jnp.broadcast_to(used[None], (n_batch, n_experts))
    gate = self._gate(
      context, "gate1", len(self.modalities), n_experts, options.gate1.k
    )
    routing = gate(pooled, seen, available)
    tokens = []
    for name, values in zip(self.modalities, hidden, strict=True):
      norm = nn.LayerNorm(
        epsilon=LAYER_NORM_EPSILON,
        dtype=self.dtype,
        name=f"l2ln_{_SHORT.get(name, name)}",
      )
      tokens.append(norm(values))
    tokens = context.dense(options.D, "l2_adapter")(jnp.stack(tokens, axis=2))
    tokens = jnp.where(mask[..., None], tokens, 0.0)  # [b t m d]
    fused, summaries, denoising = jnp.zeros((n_batch, options.d)), [], []
    for copy in range(copies):
      own, results = context.copied(copy), {}
      if "sparse" not in options.disabled_experts:
        results["sparse"], per_modality = sparse_expert(own, tokens, mask)
        summaries.append(per_modality)
      if "dense" not in options.disabled_experts:
        results["dense"] = dense_expert(own, tokens, mask)
      if "robust" not in options.disabled_experts:
        results["robust"], error = robust_expert(self, own, tokens, mask)
        denoising.append(error)
      for index, name in enumerate(FUSION_EXPERTS):
        if name in results:
          label = own.name(f"l2_oln_{index}")
          norm = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, name=label)
          normalised = norm(results[name].astype(jnp.float32))
          weight = routing.combine[:, index * copies + copy, None]
          fused = fused + weight * normalised
    summaries = _mean(summaries) if summaries else None
    return fused, summaries, routing, _mean(denoising) if denoising else jnp.zeros(())

  @nn.nowrap
  def _polarity_layer(self, context, fused, summaries, seen, rows):
    """Layer 3, Gates 2 and 3 and the information-guided sparse fusion."""
    options, n_batch = self.options, seen.shape[0]
    n_experts = len(self.polarities)
    used = jnp.array([n not in options.disabled_experts for n in self.polarities])
    available = jnp.broadcast_to(used[None], (n_batch, n_experts))
    gate = self._gate(
      context, "gate2", options.gate.n_units, n_experts, options.gate2.k
    )
    prior = gate(fused, None, available)
    expert = PolarityExpert(
      options.polarity.hidden,
      options.polarity.layers,
      options.dropout.expert,
      context.deterministic,
      self.dtype,
      parent=None,
    )
    bank = ExpertBank(expert, n_experts, name="L3")
    output_gate = OutputGate(
      options.gate.hidden[3],
      n_experts,
      options.dropout.gate,
      context.deterministic,
      name="gate3",
    )
    if options.dispatch == "dense":
      outputs = bank(fused)  # [e b d]
      routing = self._output_routing(output_gate(outputs), prior)
      mixed = combine_dense(outputs.astype(jnp.float32), routing)
    else:
      used_k = min(options.gate2.k, n_experts)
      slots = capacity_of(n_batch, n_experts, used_k, options.capacity_factor)
      plan = plan_capacity(prior, slots, rows)
      outputs = bank(dispatch_capacity(fused, plan), in_axes=0)  # [e slots d]
      scores = scatter_capacity(plan, output_gate(outputs).T, n_batch)
      routing = self._output_routing(scores, prior)
      plan = reweigh_capacity(plan, routing, rows)
      mixed = combine_capacity(outputs.astype(jnp.float32), plan, fused)
    sparse = jnp.zeros_like(mixed)
    if options.igsf.enabled and summaries is not None:
      fusion = SparseFusion(options.igsf.stop_grad, name="gate3_igsf")
      sparse = fusion(prior.probs, summaries, seen)
    parts = (prior, routing, mixed, sparse)
    return mixed + sparse, parts, self._mi_scores(prior.probs)

  @nn.nowrap
  def _output_routing(self, scores, prior: Routing) -> Routing:
    return fuse_polarities(scores, prior, self.options.gate3.mode, self.options.gate2.k)

  @nn.nowrap
  def _mi_scores(self, routes: Float[Array, "b e"]) -> Float[Array, "b c"]:
    """Similarity of every sample's route with every route class (Eq. 11)."""
    classes = self.n_route_classes
    if self.options.mi.similarity == "onehot" and classes == len(self.polarities):
      return vertex_cosine(routes)
    projected = nn.Dense(64, use_bias=False, name="mi_route")(routes)
    anchors = self.param("mi_classes", nn.initializers.normal(1.0), (classes, 64))
    return _unit(projected) @ _unit(anchors).T

  @nn.nowrap
  def _head(self, context, fused: Array) -> Array:
    hidden = nn.relu(context.dense(self.options.head.hidden, "head_1")(fused))
    hidden = context.dropout("head")(hidden)
    result = context.dense(self.target.num_outputs, "head_2")(hidden).astype(
      jnp.float32
    )
    return shape_predictions(self.target, result)

  @nn.nowrap
  def _constant_weights(self, seen: Bool[Array, "b m"]) -> Float[Array, "b m"]:
    weights = [1.0] * len(self.modalities)
    if self.options.fusion == "fixed":
      weights = [_FIXED_WEIGHTS.get(n, _OTHER_FIXED_WEIGHT) for n in self.modalities]
    weights = jnp.where(seen, jnp.array(weights)[None], 0.0)
    return weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1e-9)

  @nn.nowrap
  def _blank(self, seen: Bool[Array, "b m"]):
    """Routing, features and losses of a model without any of its layers."""
    n_batch, n_slots = seen.shape
    n_polarities = len(self.polarities)
    copies = self.options.experts_per_family
    sizes = {
      "gate0": n_slots * copies,
      "gate1": len(FUSION_EXPERTS) * copies,
      "gate2": n_polarities,
      "gate3": n_polarities,
    }
    routing = {
      name: Routing(*[jnp.zeros((n_batch, size))] * 3) for name, size in sizes.items()
    }
    features = {n: jnp.zeros((n_batch, self.options.d)) for n in ("r", "H_fusion")}
    features["mi_scores"] = jnp.zeros((n_batch, self.n_route_classes))
    return routing, features, {"den": jnp.zeros(())}


def _mean(values: list) -> Array:
  return sum(values[1:], start=values[0]) / len(values)


def _spread(weights: Float[Array, "b m"], copies: int) -> Array:
  """[b m] -> [b m*copies]: each weight first, then zeros for the other copies."""
  filled = jnp.pad(weights[..., None], ((0, 0), (0, 0), (0, copies - 1)))
  return filled.reshape(len(weights), -1)


def _pool(sequences: list, mask: Bool[Array, "b t m"]) -> Float[Array, "b m d"]:
  """Mean over the real steps of each modality."""
  means = [
    masked_mean(values, mask[..., slot, None], axis=1)
    for slot, values in enumerate(sequences)
  ]
  return jnp.stack(means, axis=1)


def _unit(rows: Float[Array, "n d"]) -> Float[Array, "n d"]:
  """Rows scaled to length 1, zero rows kept (cosines)."""
  square = jnp.sum(rows**2, axis=-1, keepdims=True)
  return rows * jnp.where(square > 0, 1.0, 0.0) / jnp.sqrt(jnp.maximum(square, 1e-12))
