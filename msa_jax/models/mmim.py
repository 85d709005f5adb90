"""MMIM: mutual information of modalities, and of them with what is fused of them.

Source: Han, Chen, Poria, EMNLP 2021 (arXiv:2109.00412); networks and trainer as in MMSA
(thuiar/MMSA, singleTask/MMIM.py).
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from msa_jax.config.options import OptimConfig
from msa_jax.errors import UserError
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import POOLS, masked_mean, pool_steps
from msa_jax.layers.recurrent import LSTM
from msa_jax.losses.contrastive import predictive_coding
from msa_jax.models.late_fusion.base import COMPAT, check_by_modality, check_present
from msa_jax.models.options import check, construct, defaults
from msa_jax.models.outputs import (
  REGRESSION,
  OutputSpec,
  primary_output,
  shape_predictions,
)
from msa_jax.models.system import Options, Stage, System, Turn
from msa_jax.typing import MODALITIES, Batch, Modality, ModelOutput, Spec

COLLECTION = "memory"
_ESTIMATOR, _ENTROPY = "estimate_", "project"
_RIDGE = 1e-6  # on the diagonal of covariances, so that few rows have a determinant


class FinalStates(nn.Module):
  """Final states of an LSTM, of both directions if it has two, and a linear layer.

  Attributes:
    hidden, width: units of the LSTM's directions and of the result.
    bidirectional: see `LSTM`.
    dropout: rate on the states.
    two_biases: see `LSTM`.
  """

  hidden: int
  width: int
  bidirectional: bool
  dropout: float
  two_biases: bool

  @nn.compact
  def __call__(self, modality: Modality, *, train: bool) -> Float[Array, "b d"]:
    lstm = LSTM(
      self.hidden, self.bidirectional, two_biases=self.two_biases, name="lstm"
    )
    _, last = lstm(modality.features, modality.mask)
    last = Dropout(self.dropout, not train)(last)
    return nn.Dense(self.width, name="linear")(last)


class Estimator(nn.Module):
  """A normal density of y given x, and a projection of y whose entropy is estimated.

  Attributes:
    literal: the density lacks its normaliser, as in the released code: it grows with
      the variance, and is none.

  Source: MMIM, Eq. 3-6 (the Barber-Agakov bound).
  """

  literal: bool

  @nn.compact
  def __call__(
    self, given: Float[Array, "b d"], told: Float[Array, "b k"], rows: Bool[Array, " b"]
  ) -> tuple[Float[Array, ""], Float[Array, "b c"]]:
    """Mean log density of `told` given `given`, less a constant, and its projection."""
    width = told.shape[-1]
    project = nn.Dense(max(1, width // 4), name=_ENTROPY)

    def layers(name):
      hidden = nn.relu(nn.Dense(width, name=f"{name}_1")(given))
      return nn.Dense(width, name=f"{name}_2")(hidden)

    mean, log_variance = layers("mean"), layers("log_variance")
    each = -((mean - told) ** 2) / (2.0 * jnp.exp(log_variance))
    if not self.literal:
      each = each - log_variance / 2.0
    density = masked_mean(jnp.sum(each, axis=-1), rows, 0)
    return density, jnp.tanh(project(told))


class Predictor(nn.Module):
  """What the fusion says of a modality's features: a linear layer, or more of them with
  tanh between.

  Attributes:
    width: of the features.
    num_layers: layers; the hidden ones are as wide as the features.
  """

  width: int
  num_layers: int

  @nn.compact
  def __call__(self, fusion: Float[Array, "b d"]) -> Float[Array, "b k"]:
    for index in range(self.num_layers):
      fusion = jnp.tanh(fusion) if index else fusion
      fusion = nn.Dense(self.width, name=f"layer_{index + 1}")(fusion)
    return fusion


class Memory(NamedTuple):
  """Projections of the batches before, which make covariances of enough rows.

  Attributes:
    values: [m b c] of the last m batches, newest first.
    signs: [m b] of their labels; 0 = no row, or a label of zero.
  """

  values: jax.Array
  signs: jax.Array


def _remembered(
  memory: Memory, projected: Float[Array, "b c"], signs: Int[Array, " b"]
) -> dict[str, jax.Array]:
  """The memory with a batch in front; rows that a smaller batch lacks do not count."""
  rows = memory.signs.shape[1]
  lacking = max(0, rows - len(signs))
  values = jnp.pad(projected[:rows], ((0, lacking), (0, 0)))
  signs = jnp.pad(signs[:rows], (0, lacking))
  return {
    "values": jnp.concatenate([values[None], memory.values[:-1]]),
    "signs": jnp.concatenate([signs[None], memory.signs[:-1]]),
  }


def entropy(
  projected: Float[Array, "b c"],
  signs: Int[Array, " b"],
  memory: Memory,
  literal: bool = False,
) -> Float[Array, ""]:
  """(log det S_positive + log det S_negative) / 4, S the covariance of the rows of a
  sign, those of the memory included.

  Args:
    projected: of the batch.
    signs: of its labels; 0 = the row does not count.
    memory: of the batches before; has no gradient.
    literal: any number of rows counts, and none is minus infinity or NaN; else 1e-6 is
      added to the diagonal, and a sign with fewer than c + 1 rows adds nothing.

  Source: MMIM, Eq. 7-8.
  """
  width = projected.shape[-1]
  stored = lax.stop_gradient(memory.values).reshape(-1, width)
  rows = jnp.concatenate([stored, projected])
  kinds = jnp.concatenate([memory.signs.reshape(-1), signs])
  total = jnp.zeros(())
  for sign in (1, -1):
    mask = kinds == sign
    mean = masked_mean(rows, mask[:, None], 0)
    centred = jnp.where(mask[:, None], rows - mean[None], 0.0)
    count = jnp.sum(mask)
    scatter = centred.T @ centred
    if literal:
      total += jnp.linalg.slogdet(scatter / count)[1]
      continue
    enough = count > width
    unit = jnp.eye(width)
    covariance = scatter / jnp.maximum(count, 1) + _RIDGE * unit
    covariance = jnp.where(enough, covariance, unit)
    total += jnp.where(enough, jnp.linalg.slogdet(covariance)[1], 0.0)
  return total / 4.0


class MMIM(nn.Module):
  """The network, by default with MMSA's sizes for MOSI.

    model = MMIM()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Attributes:
    output: the task predicted, a number: the entropies are of positive and of negative
      samples.
    modalities: names in canonical order; every batch must have them.
    text_pool: what stands for a text: the `first` step (BERT's sentence token), as in
      MMSA, or the `mean`.
    hidden_dims: modality -> units of its LSTM's directions; text has none.
    feature_dims: modality -> width of what its LSTM says.
    fusion_dim: units of both fusion layers.
    bidirectional: whether the LSTMs have two directions.
    num_predictor_layers: of the networks that tell modalities by the fusion.
    all_pairs: whether the bound is also of vision and audio, not of text with each
      alone.
    memory_batches: batches whose rows the entropies remember.
    dropout: modality -> rate on the LSTM's states; text has none.
    post_dropout: rate on what is fused.
    compat: `mmsa` = a density without its normaliser; determinants of any number of
      rows; entropies that count a batch late, of projections that are never trained;
      both biases of PyTorch's LSTM.

  Source: MMIM, section 3.
  """

  output: OutputSpec = REGRESSION
  modalities: tuple[str, ...] = MODALITIES
  text_pool: str = "first"
  hidden_dims: Mapping[str, int] = FrozenDict(audio=16, vision=16)
  feature_dims: Mapping[str, int] = FrozenDict(audio=16, vision=16)
  fusion_dim: int = 128
  bidirectional: bool = True
  num_predictor_layers: int = 1
  all_pairs: bool = False
  memory_batches: int = 1
  dropout: Mapping[str, float] = FrozenDict(audio=0.1, vision=0.1)
  post_dropout: float = 0.1
  compat: str = "none"

  def __post_init__(self):
    check(
      self,
      choices={"compat": COMPAT, "text_pool": POOLS},
      positive=("hidden_dims", "feature_dims", "fusion_dim", "num_predictor_layers"),
      not_negative=("memory_batches",),
      rates=("dropout", "post_dropout"),
    )
    if self.output.kind != "regression":
      raise UserError(
        f"config.model.task={self.output.name!r} is of kind {self.output.kind!r}: MMIM"
        " estimates entropies of positive and of negative samples; choose a task of"
        " kind 'regression'."
      )
    check_by_modality(self, "hidden_dims", "feature_dims", "dropout", but=("text",))
    super().__post_init__()

  @nn.compact
  def __call__(
    self, batch: Batch, *, train: bool = False, rows: int = 0
  ) -> ModelOutput:
    """Predicts by the fusion; `features` has it and the modalities', `losses` the
    `likelihood` (minus the mean log densities), `coding` and, in a step of training
    that has a memory, `entropy`.

    Args:
      batch: has every modality of the network; what is absent is hidden.
      train: whether dropout is used, and the memory.
      rows: of the batches that train, of which the memory is made; 0 = no memory.

    Raises:
      UserError: the batch lacks a modality.
    """
    check_present(self.modalities, batch)
    there = {
      name: jnp.any(batch.modalities[name].mask, axis=1) for name in self.modalities
    }
    features = {
      name: jnp.where(there[name][:, None], self._encode(batch, name, train), 0.0)
      for name in self.modalities
    }
    joint = jnp.concatenate([*features.values()], axis=-1)
    joint = Dropout(self.post_dropout, not train)(joint)
    hidden = jnp.tanh(nn.Dense(self.fusion_dim, name="fusion_1")(joint))
    fusion = jnp.tanh(nn.Dense(self.fusion_dim, name="fusion_2")(hidden))
    values = nn.Dense(self.output.num_outputs, name="out")(fusion)
    real = {name: shown & batch.sample_mask for name, shown in there.items()}
    losses = {"coding": self._coding(fusion, features, real)}
    losses |= self._bounds(batch, features, real, train, rows)
    predictions = {self.output.name: shape_predictions(self.output, values)}
    return ModelOutput(predictions, {**features, "fusion": fusion}, losses=losses)

  @nn.nowrap
  def _encode(self, batch: Batch, name: str, train: bool) -> Float[Array, "b d"]:
    modality = batch.modalities[name]
    if name == "text":
      return pool_steps(modality.features, modality.mask, self.text_pool)
    encoder = FinalStates(
      self.hidden_dims[name],
      self.feature_dims[name],
      self.bidirectional,
      self.dropout[name],
      self.compat == "mmsa",
      name=f"encoder_{name}",
    )
    return encoder(modality, train=train)

  @nn.nowrap
  def _coding(
    self,
    fusion: Float[Array, "b d"],
    features: Mapping[str, jax.Array],
    real: Mapping[str, jax.Array],
  ) -> Float[Array, ""]:
    found = jnp.zeros(())
    for name, values in features.items():
      predict = Predictor(
        values.shape[-1], self.num_predictor_layers, name=f"predict_{name}"
      )
      found += predictive_coding(values, predict(fusion), real[name])
    return found

  @nn.nowrap
  def _pairs(self) -> list[tuple[str, str]]:
    """Which modality tells which: text the others, then vision audio."""
    order = [name for name in ("text", "vision", "audio") if name in self.modalities]
    every = self.all_pairs or "text" not in order
    return [p for p in itertools.combinations(order, 2) if every or p[0] == "text"]

  @nn.nowrap
  def _bounds(
    self,
    batch: Batch,
    features: Mapping[str, jax.Array],
    real: Mapping[str, jax.Array],
    train: bool,
    rows: int,
  ) -> dict[str, Float[Array, ""]]:
    """`likelihood`, and `entropy` where a memory is kept."""
    likelihood, projections, kept = jnp.zeros(()), {}, {}
    for given, told in self._pairs():
      estimate = Estimator(self.compat == "mmsa", name=f"{_ESTIMATOR}{given}_{told}")
      density, projected = estimate(
        features[given], features[told], real[given] & real[told]
      )
      likelihood -= density
      projections[f"{given}_{told}"], kept[f"{given}_{told}"] = projected, real[told]
    found = {"likelihood": likelihood}
    if rows and self.memory_batches:
      found["entropy"] = self._entropies(batch, projections, kept, train, rows)
    return found

  @nn.nowrap
  def _entropies(
    self,
    batch: Batch,
    projections: Mapping[str, jax.Array],
    kept: Mapping[str, jax.Array],
    train: bool,
    rows: int,
  ) -> Float[Array, ""]:
    """Minus the sum of the pairs' entropies, once the memory is full; in a step of
    training it takes the batch in."""
    held = self.variable(COLLECTION, "pairs", self._empty, projections, rows)
    count = self.variable(COLLECTION, "count", jnp.zeros, (), jnp.int32)
    if not train or self.is_initializing():
      return jnp.zeros(())
    label = batch.labels[self.output.name]
    known = label.mask & batch.sample_mask
    sign = jnp.where(known, jnp.sign(label.value), 0).astype(jnp.int32)
    literal, full = self.compat == "mmsa", count.value >= self.memory_batches
    total, after = jnp.zeros(()), {}
    for name, projected in projections.items():
      signs = jnp.where(kept[name], sign, 0)
      memory = Memory(held.value[name]["values"], held.value[name]["signs"])
      total += entropy(projected, signs, memory, literal)
      after[name] = _remembered(memory, lax.stop_gradient(projected), signs)
    # The released code computes them when the memory is full, and uses them one batch
    # later.
    used = count.value > self.memory_batches if literal else full
    if self.is_mutable_collection(COLLECTION):
      held.value, count.value = after, count.value + 1
    return -jnp.where(used, total, 0.0)

  @nn.nowrap
  def _empty(self, projections: Mapping[str, jax.Array], rows: int) -> dict[str, Any]:
    shape = (self.memory_batches, rows)
    return {
      name: {
        "values": jnp.zeros((*shape, projected.shape[-1])),
        "signs": jnp.zeros(shape, jnp.int32),
      }
      for name, projected in projections.items()
    }


def build(options: Options, spec: Spec) -> MMIM:
  """Builds the network for a corpus."""
  output = primary_output(options, spec)
  return construct(MMIM, options, output=output, modalities=spec.modalities)


def _is_estimator(path: tuple[str, ...]) -> bool:
  return path[0].startswith(_ESTIMATOR)


def partition(path: tuple[str, ...]) -> str:
  """The density estimators have a learning rate and a decay of their own."""
  return "estimators" if _is_estimator(path) else "new"


def stages(
  options: Options, spec: Spec, optim: OptimConfig, monitor: str
) -> tuple[Stage, ...]:
  """One stage whose epochs take turns: first the densities are fitted, then the network
  trains against them."""
  del spec, monitor
  literal = options.get("compat") == "mmsa"

  def estimates(path):
    return _is_estimator(path) and path[1] != _ENTROPY

  def others(path):
    # In the released code the projections are in an optimizer that never sees a
    # gradient of theirs.
    return not (_is_estimator(path) if literal else estimates(path))

  first = Turn(estimates, task=0.0, losses={"likelihood": 1.0}, others=0.0)
  stage = Stage(
    "train",
    optim.epochs,
    optim.patience,
    call={"rows": optim.batch_size},
    turns=(first, Turn(others)),
    clip_all=literal,
  )
  return (stage,)


def recipe(model: nn.Module, stage: Stage, made: Any) -> Any:
  """The default recipe; the memory of an epoch does not go on into the next."""
  del model, stage

  def end_epoch(state):
    state = made.end_epoch(state)
    held = jax.tree.map(jnp.zeros_like, state.collections[COLLECTION])
    return state.replace(collections={**state.collections, COLLECTION: held})

  return made._replace(end_epoch=end_epoch)


def options() -> dict[str, Any]:
  """Options of the system (`config.model`): the fields of `MMIM`."""
  return {"name": "mmim", **defaults(MMIM)}


SYSTEM = System(
  build=build,
  partition=partition,
  stages=stages,
  recipe=recipe,
  options=defaults(MMIM),
  losses={"likelihood": 0.1, "coding": 0.1, "entropy": 0.1},
)
