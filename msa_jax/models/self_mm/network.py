"""Self-MM: late fusion with a head per modality, taught by labels of its own.

Source: Yu et al., AAAI 2021 (arXiv:2102.04830); networks as in MMSA (thuiar/MMSA,
multiTask/SELF_MM.py).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float

from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import POOLS, pool_steps
from msa_jax.layers.recurrent import LSTM
from msa_jax.models.late_fusion.base import COMPAT, check_by_modality, check_present
from msa_jax.models.options import check, defaults
from msa_jax.models.outputs import REGRESSION, OutputSpec, shape_predictions
from msa_jax.models.self_mm.heads import (
  LOSSES,
  BranchHead,
  PseudoLabels,
  check_regression,
)
from msa_jax.models.self_mm.tables import FUSION, Rules
from msa_jax.models.system import system_of
from msa_jax.typing import MODALITIES, Batch, Modality, ModelOutput


class SequenceEncoder(nn.Module):
  """Last valid state of an LSTM, dropout, a linear layer.

  Attributes:
    hidden: width of the state.
    width: of the result.
    dropout: rate on the state.
    two_biases: see `LSTM`.
  """

  hidden: int
  width: int
  dropout: float = 0.0
  two_biases: bool = False

  @nn.compact
  def __call__(self, modality: Modality, *, train: bool) -> Float[Array, "b d"]:
    lstm = LSTM(self.hidden, two_biases=self.two_biases, name="lstm")
    _, last = lstm(modality.features, modality.mask)
    last = Dropout(self.dropout, not train)(last)
    return nn.Dense(self.width, name="linear")(last)


class SelfMM(nn.Module):
  """The network, by default with MMSA's sizes for MOSI.

    model = SelfMM()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Attributes:
    output: the task predicted, a number.
    modalities: names in canonical order; every batch must have them.
    train_size: rows of the training split, of which each has labels of its own.
    text_pool: what stands for a text: the `first` step (BERT's sentence token), as in
      MMSA, or the `mean`.
    hidden_dims: modality -> units of its LSTM; text has none.
    feature_dims: modality -> width of what its LSTM says.
    head_dims: modality -> units of its head.
    fusion_dim: units of the fusion's head.
    dropout: modality -> rate on the input of its head.
    post_dropout: the same of the fusion's.
    exclude_zero: whether labels of exactly zero are no positive ones.
    label_limit: greatest absolute label that a modality may get; 0 = half the range.
    compat: `mmsa` = both biases of PyTorch's LSTM, ratios and means whatever divides.

  Source: Self-MM, section 3.
  """

  output: OutputSpec = REGRESSION
  modalities: tuple[str, ...] = MODALITIES
  train_size: int = 1
  text_pool: str = "first"
  hidden_dims: Mapping[str, int] = FrozenDict(audio=16, vision=32)
  feature_dims: Mapping[str, int] = FrozenDict(audio=16, vision=32)
  head_dims: Mapping[str, int] = FrozenDict(text=32, audio=16, vision=32)
  fusion_dim: int = 128
  dropout: Mapping[str, float] = FrozenDict(text=0.1, audio=0.1, vision=0.0)
  post_dropout: float = 0.0
  exclude_zero: bool = True
  label_limit: float = 0.0
  compat: str = "none"

  def __post_init__(self):
    check(
      self,
      choices={"compat": COMPAT, "text_pool": POOLS},
      positive=("hidden_dims", "feature_dims", "head_dims", "fusion_dim"),
      not_negative=("label_limit",),
      rates=("dropout", "post_dropout"),
    )
    check_regression(self.output, "Self-MM")
    check_by_modality(self, "head_dims", "dropout")
    check_by_modality(self, "hidden_dims", "feature_dims", but=("text",))
    super().__post_init__()

  @nn.compact
  def __call__(self, batch: Batch, *, train: bool = False) -> ModelOutput:
    """Predicts by the fusion; `features` has each branch's, and `predicted_<modality>`
    what each modality's head says.

    Raises:
      UserError: the batch lacks a modality.
    """
    check_present(self.modalities, batch)
    present = {
      name: jnp.any(batch.modalities[name].mask, axis=1) for name in self.modalities
    }
    encoded = {name: self._encode(batch, name, train) for name in self.modalities}
    encoded = {
      name: jnp.where(present[name][:, None], values, 0.0)
      for name, values in encoded.items()
    }
    inputs = {FUSION: jnp.concatenate([*encoded.values()], axis=-1), **encoded}
    widths = {FUSION: self.fusion_dim, **self.head_dims}
    rates = {FUSION: self.post_dropout, **self.dropout}
    said, features = {}, {}
    for name, values in inputs.items():
      head = BranchHead(
        widths[name], self.output.num_outputs, rates[name], name=f"post_{name}"
      )
      values, features[name] = head(values, train=train)
      said[name] = shape_predictions(self.output, values)
    prediction = said.pop(FUSION)
    limit = self.label_limit or (self.output.high - self.output.low) / 2
    rules = Rules(limit, self.exclude_zero, self.compat)
    losses = PseudoLabels(self.train_size, rules, name="tables")(
      batch, self.output.name, said, features, present, train=train
    )
    told = {f"predicted_{name}": values for name, values in said.items()}
    return ModelOutput(
      {self.output.name: prediction}, {**features, **told}, losses=losses
    )

  @nn.nowrap
  def _encode(self, batch: Batch, name: str, train: bool) -> Float[Array, "b d"]:
    modality = batch.modalities[name]
    if name == "text":
      return pool_steps(modality.features, modality.mask, self.text_pool)
    encoder = SequenceEncoder(
      self.hidden_dims[name],
      self.feature_dims[name],
      two_biases=self.compat == "mmsa",
      name=f"encoder_{name}",
    )
    return encoder(modality, train=train)


def partition(path: tuple[str, ...]) -> str:
  """The networks of audio and vision have learning rates and decays of their own."""
  name = path[0].removeprefix("encoder_")
  return name if name != path[0] else "new"


def options() -> dict[str, Any]:
  """Options of the system (`config.model`): the fields of `SelfMM`."""
  return {"name": "self_mm", **defaults(SelfMM)}


SYSTEM = system_of(
  SelfMM,
  partition=partition,
  losses=LOSSES,
)
