"""TETFN: text-enhanced transformers, taught like Self-MM.

Source: Wang, Guo, Tian, Liu, He, Luo, Pattern Recognition 2023; as in MMSA's
re-implementation (thuiar/MMSA, multiTask/TETFN.py), the paper's own code not being
public.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.layers.convolution import ValidConvolution
from msa_jax.layers.crossmodal import CrossmodalEncoder
from msa_jax.layers.masking import last_step
from msa_jax.layers.recurrent import LSTM
from msa_jax.models.late_fusion.base import (
  COMPAT,
  check_by_modality,
  check_present,
  with_padding,
)
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
from msa_jax.typing import MODALITIES, Batch, ModelOutput

_LAYERS = 2  # of all encoders but the lower ones of text enhancement, which have one

Sequence = tuple[Float[Array, "b t d"], Bool[Array, "b t"]]


class TETFN(nn.Module):
  """The network, by default with MMSA's sizes for MOSI.

    model = TETFN()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Attributes:
    output: the task predicted, a number.
    modalities: names in canonical order, text among them; every batch must have them.
    train_size: rows of the training split, of which each has labels of its own.
    hidden_dim: width of all sequences, d.
    num_heads: of all encoders.
    lstm_dims: modality -> units of its LSTM; text has none.
    kernel_sizes: modality -> steps of its convolution.
    head_dims: modality -> units of its head.
    fusion_dim: units of the fusion's head.
    dropout: rates on hidden units of the encoders' layers (`relu`) and on what these
      add (`residual`).
    attention_dropout: rate on attention probabilities, by source; of encoders that text
      enhances, and of those over a modality's results, that of text.
    head_dropout: modality -> rate on the input of its head.
    post_dropout: the same of the fusion's.
    exclude_zero, label_limit: see `SelfMM`.
    compat: `mmsa` = padding is read like steps and the last step wherever it lies; a
      step has a position if its first channel is not zero; the convolution of vision is
      as long as that of audio; ratios and means whatever divides; both biases of
      PyTorch's LSTM.
  """

  output: OutputSpec = REGRESSION
  modalities: tuple[str, ...] = MODALITIES
  train_size: int = 1
  hidden_dim: int = 50
  num_heads: int = 5
  lstm_dims: Mapping[str, int] = FrozenDict(audio=16, vision=64)
  kernel_sizes: Mapping[str, int] = FrozenDict(text=1, audio=1, vision=1)
  head_dims: Mapping[str, int] = FrozenDict(text=32, audio=32, vision=16)
  fusion_dim: int = 64
  dropout: Mapping[str, float] = FrozenDict(relu=0.0, residual=0.1)
  attention_dropout: Mapping[str, float] = FrozenDict(text=0.1, audio=0.0, vision=0.1)
  head_dropout: Mapping[str, float] = FrozenDict(text=0.0, audio=0.0, vision=0.0)
  post_dropout: float = 0.0
  exclude_zero: bool = True
  label_limit: float = 0.0
  compat: str = "none"

  def __post_init__(self):
    sizes = ("hidden_dim", "num_heads", "lstm_dims", "kernel_sizes", "head_dims")
    check(
      self,
      choices={"compat": COMPAT},
      positive=(*sizes, "fusion_dim"),
      not_negative=("label_limit",),
      rates=("dropout", "attention_dropout", "head_dropout", "post_dropout"),
    )
    if self.hidden_dim % self.num_heads:
      raise UserError(
        f"model.num_heads={self.num_heads} must divide model.hidden_dim="
        f"{self.hidden_dim}."
      )
    check_regression(self.output, "TETFN")
    if "text" not in self.modalities or len(self.modalities) < 2:
      raise UserError(
        f"TETFN enhances what else there is by text: modalities"
        f" {', '.join(self.modalities)} must be text and another one; choose with"
        " config.data.modalities."
      )
    check_by_modality(self, "head_dims", "kernel_sizes", "head_dropout")
    check_by_modality(self, "lstm_dims", but=("text",))
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
    read = with_padding(batch) if self.compat == "mmsa" else batch
    sequences = {name: self._projected(read, name) for name in self.modalities}
    ends = [self._ending(name, sequences, train) for name in self.modalities]
    inputs = {FUSION: jnp.concatenate(ends, axis=-1)}
    inputs |= {name: _largest(*each) for name, each in sequences.items()}
    widths = {FUSION: self.fusion_dim, **self.head_dims}
    rates = {FUSION: self.post_dropout, **self.head_dropout}
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
  def _projected(self, batch: Batch, name: str) -> Sequence:
    """A modality's sequence at the common width, and what of it is real."""
    modality, size = batch.modalities[name], self.kernel_sizes[name]
    values, mask = modality.features, modality.mask
    if name != "text":
      if self.compat == "mmsa":
        size = self.kernel_sizes.get("audio", size)
      lstm = LSTM(
        self.lstm_dims[name],
        two_biases=self.compat == "mmsa",
        name=f"encoder_{name}",
      )
      values, _ = lstm(values, mask)
    return ValidConvolution(self.hidden_dim, size, name=f"project_{name}")(values, mask)

  @nn.nowrap
  def _ending(
    self, name: str, sequences: Mapping[str, Sequence], train: bool
  ) -> Float[Array, "b n"]:
    """The last step of what a modality makes of the others."""
    own, mask = sequences[name]
    results = []
    for other in self.modalities:
      if other == name:
        continue
      if "text" in (name, other):
        encode = self._encoder(f"{name}_with_{other}", other, train)
        results.append(encode(own, mask, *sequences[other]))
        continue
      # The other modality asks text first, and this one asks what it found.
      lower = self._encoder(f"{name}_asks_{other}", "text", train, 1, True)
      found = lower(*sequences[other], *sequences["text"])
      upper = self._encoder(f"{name}_with_{other}", "text", train, _LAYERS, True)
      results.append(upper(own, mask, found, sequences[other][1]))
    memory = jnp.concatenate(results, axis=-1)
    memory = self._encoder(f"{name}_memory", "text", train)(memory, mask)
    return last_step(memory, mask)

  @nn.nowrap
  def _encoder(
    self,
    name: str,
    source: str,
    train: bool,
    layers: int = _LAYERS,
    positions: bool = False,
  ) -> CrossmodalEncoder:
    return CrossmodalEncoder(
      n_layers=layers,
      n_heads=self.num_heads,
      positions=positions,
      zero_is_padding=self.compat == "mmsa",
      attention_dropout=self.attention_dropout.get(source, 0.0),
      relu_dropout=self.dropout["relu"],
      residual_dropout=self.dropout["residual"],
      deterministic=not train,
      name=name,
    )


def _largest(
  values: Float[Array, "b t d"], mask: Bool[Array, "b t"]
) -> Float[Array, "b d"]:
  """Greatest value of each feature over the valid steps; zero without any."""
  there = jnp.any(mask, axis=1)[:, None]
  shown = jnp.where(mask[..., None], values, -jnp.inf)
  return jnp.where(there, jnp.max(jnp.where(there[:, None], shown, 0.0), axis=1), 0.0)


def partition(path: tuple[str, ...]) -> str:
  """What turns audio and vision into sequences has rates and decays of its own."""
  kind, _, name = path[0].partition("_")
  return name if kind in ("encoder", "project") and name != "text" else "new"


def options() -> dict[str, Any]:
  """Options of the system (`config.model`): the fields of `TETFN`."""
  return {"name": "tetfn", **defaults(TETFN)}


SYSTEM = system_of(
  TETFN,
  partition=partition,
  losses=LOSSES,
)
