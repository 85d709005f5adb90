"""MISA: codes that modalities share, and codes of their own.

Source: Hazarika, Zimmermann, Poria, ACM MM 2020 (arXiv:2005.03545); networks as in
MMSA (thuiar/MMSA, singleTask/MISA.py).
"""

import itertools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.layers.attention import LAYER_NORM_EPSILON, MultiHeadAttention
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import pool_steps
from msa_jax.layers.recurrent import CELLS, GRU, LSTM
from msa_jax.losses import representation
from msa_jax.losses.task import cross_entropy, masked_average
from msa_jax.models.late_fusion.base import COMPAT, check_present
from msa_jax.models.options import check, defaults
from msa_jax.models.outputs import REGRESSION, OutputSpec, shape_predictions
from msa_jax.models.system import system_of
from msa_jax.typing import MODALITIES, Batch, Modality, ModelOutput

SIMILARITIES = ("cmd", "adversarial")
# Order of the six tokens that are fused, and of the domains of the discriminator.
_TOKENS = ("text", "vision", "audio")
# Pairs whose difference counts, beside each modality's private and shared code.
_PRIVATE_PAIRS = (("audio", "text"), ("audio", "vision"), ("text", "vision"))

Codes = dict[str, jax.Array]


def _norm(name: str) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, name=name)


class TwoLayers(nn.Module):
  """Two bidirectional recurrent layers, the second on the normalised states of the
  first: the final states of both, forward ones first.

  Attributes:
    cell: of `layers.recurrent.CELLS`.
    two_biases: see `LSTM`.
  """

  cell: str = "lstm"
  two_biases: bool = False

  @nn.compact
  def __call__(self, modality: Modality) -> Float[Array, "b c"]:
    """[b 4 d], d the width of the features, which is that of the states too."""
    width = modality.features.shape[-1]

    def layer(name):
      if self.cell == "gru":
        return GRU(width, bidirectional=True, name=name)
      return LSTM(width, bidirectional=True, two_biases=self.two_biases, name=name)

    states, first = layer("rnn_1")(modality.features, modality.mask)
    normalised = jnp.where(modality.mask[..., None], _norm("norm")(states), 0.0)
    _, second = layer("rnn_2")(normalised, modality.mask)
    ends = zip(jnp.split(first, 2, axis=-1), jnp.split(second, 2, axis=-1), strict=True)
    return jnp.concatenate([end for both in ends for end in both], axis=-1)


class FusionLayer(nn.Module):
  """One layer of a transformer with its norms after the sums, as PyTorch has it.

  Attributes:
    num_heads, ffn_dim: sizes.
    dropout: rate on attention probabilities, both branches and the hidden units.
    deterministic: True = evaluation.
  """

  num_heads: int
  ffn_dim: int
  dropout: float
  deterministic: bool

  @nn.compact
  def __call__(
    self, tokens: Float[Array, "b t d"], mask: Bool[Array, "b t"]
  ) -> Float[Array, "b t d"]:
    width = tokens.shape[-1]

    def drop(values, name):
      return Dropout(self.dropout, self.deterministic, name=name)(values)

    attention = MultiHeadAttention(
      width, self.num_heads, self.dropout, self.deterministic, name="attention"
    )
    mixed = attention(tokens, tokens, mask)
    tokens = _norm("norm_1")(tokens + drop(mixed, "drop_1"))
    hidden = nn.relu(nn.Dense(self.ffn_dim, name="ffn_1")(tokens))
    hidden = nn.Dense(width, name="ffn_2")(drop(hidden, "drop_ffn"))
    return _norm("norm_2")(tokens + drop(hidden, "drop_2"))


class MISA(nn.Module):
  """The network, by default with MMSA's sizes for MOSI.

    model = MISA()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Attributes:
    output: the task predicted.
    modalities: names in canonical order; every batch must have them.
    hidden_dim: width of all codes.
    num_heads, ffn_dim: of the layer that fuses them.
    cell: recurrent layers of audio and vision: `lstm` or `gru`.
    similarity: what makes shared codes alike: `cmd`, the central moments of their
      distributions, or `adversarial`: a discriminator that tells modalities apart,
      behind a reversed gradient.
    reverse_weight: factor of that gradient.
    dropout: rate before the last hidden layer's ReLU.
    fusion_dropout: rates of the fusing layer.
    compat: `mmsa` = audio and vision are read as far as the text is long; both biases
      of PyTorch's LSTM; two parts that nothing depends on.
  """

  output: OutputSpec = REGRESSION
  modalities: tuple[str, ...] = MODALITIES
  hidden_dim: int = 128
  num_heads: int = 2
  ffn_dim: int = 2048
  cell: str = "lstm"
  similarity: str = "cmd"
  reverse_weight: float = 0.8
  dropout: float = 0.2
  fusion_dropout: float = 0.1
  compat: str = "none"

  def __post_init__(self):
    check(
      self,
      choices={"compat": COMPAT, "cell": CELLS, "similarity": SIMILARITIES},
      positive=("hidden_dim", "num_heads", "ffn_dim"),
      not_negative=("reverse_weight",),
      rates=("dropout", "fusion_dropout"),
    )
    super().__post_init__()

  @nn.compact
  def __call__(self, batch: Batch, *, train: bool = False) -> ModelOutput:
    """Predicts one task; `features` has every modality's codes, `original_<m>`,
    `private_<m>`, `shared_<m>` and `rebuilt_<m>`; `losses` what shapes them.

    Raises:
      UserError: the batch lacks a modality.
    """
    check_present(self.modalities, batch)
    present = {
      name: jnp.any(batch.modalities[name].mask, axis=1) for name in self.modalities
    }
    codes = self._codes(batch, present)
    names = [name for name in _TOKENS if name in self.modalities]
    kinds = ("private", "shared")
    tokens = jnp.stack([codes[f"{kind}_{n}"] for kind in kinds for n in names], axis=1)
    mask = jnp.stack([present[name] for _ in kinds for name in names], axis=1)
    if self.compat == "mmsa":
      mask = jnp.ones_like(mask)
    fuse = FusionLayer(
      self.num_heads, self.ffn_dim, self.fusion_dropout, not train, name="fusion"
    )
    fused = jnp.where(mask[..., None], fuse(tokens, mask), 0.0)
    fused = fused.reshape(len(fused), -1)
    hidden = nn.Dense(3 * self.hidden_dim, name="hidden")(fused)
    hidden = nn.relu(Dropout(self.dropout, not train)(hidden))
    values = nn.Dense(self.output.num_outputs, name="out")(hidden)
    losses = self._losses(codes, present, batch, train)
    if self.compat == "mmsa":
      self._unused(batch)
    predictions = {self.output.name: shape_predictions(self.output, values)}
    return ModelOutput(predictions, codes, losses=losses)

  @nn.nowrap
  def _codes(self, batch: Batch, present: Mapping[str, jax.Array]) -> Codes:
    """All codes [b hidden_dim], zero where a sample lacks the modality."""
    shared_by_all = nn.Dense(self.hidden_dim, name="shared")
    made = {}
    for name in self.modalities:
      there = present[name][:, None]

      def dense(part, name=name):
        return nn.Dense(self.hidden_dim, name=f"{part}_{name}")

      original = nn.relu(dense("project")(self._pooled(batch, name)))
      original = _norm(f"norm_{name}")(original)
      private = nn.sigmoid(dense("private")(original))
      shared = nn.sigmoid(shared_by_all(original))
      rebuilt = dense("rebuild")(private + shared)
      parts = dict(original=original, private=private, shared=shared, rebuilt=rebuilt)
      for part, values in parts.items():
        made[f"{part}_{name}"] = (
          values if self.compat == "mmsa" else jnp.where(there, values, 0.0)
        )
    return made

  @nn.nowrap
  def _pooled(self, batch: Batch, name: str) -> Float[Array, "b d"]:
    """One vector of a modality."""
    modality = batch.modalities[name]
    if name == "text":
      return pool_steps(modality.features, modality.mask, "mean")
    if self.compat == "mmsa" and "text" in batch.modalities:
      length = jnp.sum(batch.modalities["text"].mask, axis=1)
      mask = jnp.arange(modality.mask.shape[1])[None] < length[:, None]
      modality = modality.replace(mask=mask)
    layers = TwoLayers(self.cell, self.compat == "mmsa", name=f"encoder_{name}")
    return layers(modality)

  @nn.nowrap
  def _losses(
    self, codes: Codes, present: Mapping[str, jax.Array], batch: Batch, train: bool
  ) -> dict[str, Float[Array, ""]]:
    rows = {name: there & batch.sample_mask for name, there in present.items()}

    def apart(kinds, names):
      one, other = (f"{k}_{n}" for k, n in zip(kinds, names, strict=True))
      both = rows[names[0]] & rows[names[1]]
      return representation.difference(codes[one], codes[other], both)

    pairs = [p for p in _PRIVATE_PAIRS if set(p) <= set(self.modalities)]
    own = [apart(("private", "shared"), (name, name)) for name in self.modalities]
    between = [apart(("private", "private"), pair) for pair in pairs]
    rebuilt = [
      representation.reconstruction(
        codes[f"rebuilt_{name}"], codes[f"original_{name}"], rows[name]
      )
      for name in self.modalities
    ]
    return {
      "difference": sum(own + between, jnp.zeros(())),
      "similarity": self._similarity(codes, rows, train),
      "reconstruction": sum(rebuilt, jnp.zeros(())) / len(rebuilt),
    }

  @nn.nowrap
  def _similarity(
    self, codes: Codes, rows: Mapping[str, jax.Array], train: bool
  ) -> Float[Array, ""]:
    """How unlike the shared codes are: the mean over the pairs of modalities, or how
    well a discriminator tells them apart (in nats)."""
    names = [name for name in _TOKENS if name in self.modalities]
    if self.similarity == "cmd":
      found = [
        representation.central_moments(
          codes[f"shared_{a}"], codes[f"shared_{b}"], rows[a], rows[b]
        )
        for a, b in itertools.combinations(names, 2)
      ]
      return sum(found, jnp.zeros(())) / max(1, len(found))
    discriminate = Discriminator(
      self.hidden_dim, self.reverse_weight, self.dropout, not train, name="domains"
    )
    shared = [codes[f"shared_{name}"] for name in names]
    return discriminate(shared, [rows[name] for name in names])

  @nn.nowrap
  def _unused(self, batch: Batch) -> None:
    """Parameters that MMSA's module has and nothing depends on."""
    nn.Dense(4, name="unused_discriminator")(jnp.zeros((1, self.hidden_dim)))
    if "text" in self.modalities:
      width = batch.modalities["text"].features.shape[-1]
      _norm("unused_norm")(jnp.zeros((1, 2 * width)))


class Discriminator(nn.Module):
  """How well modalities can be told by their shared codes, behind a reversed gradient.

  Attributes:
    hidden_dim: of the hidden layer.
    reverse_weight: factor of the gradient that codes get.
    dropout: rate on the hidden layer.
    deterministic: True = evaluation.
  """

  hidden_dim: int
  reverse_weight: float
  dropout: float = 0.0
  deterministic: bool = True

  @nn.compact
  def __call__(
    self, codes: list[Float[Array, "b d"]], rows: list[Bool[Array, " b"]]
  ) -> Float[Array, ""]:
    """Mean cross-entropy in nats over all codes that count.

    Args:
      codes: of each modality.
      rows: which samples have it.
    """
    weight = jnp.asarray(self.reverse_weight, jnp.float32)
    shared = representation.reversed_gradient(jnp.concatenate(codes), weight)
    hidden = nn.relu(nn.Dense(self.hidden_dim, name="hidden")(shared))
    hidden = Dropout(self.dropout, self.deterministic, name="drop")(hidden)
    logits = nn.Dense(len(codes), name="out")(hidden)
    domain = jnp.arange(len(shared)) // len(codes[0])
    return masked_average(cross_entropy(logits, domain), jnp.concatenate(rows))


def options() -> dict[str, Any]:
  """Options of the system (`config.model`): the fields of `MISA`."""
  return {"name": "misa", **defaults(MISA)}


SYSTEM = system_of(
  MISA, losses={"difference": 0.1, "similarity": 0.3, "reconstruction": 1.0}
)
