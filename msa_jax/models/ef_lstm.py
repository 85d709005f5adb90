"""EF-LSTM: early fusion, the modalities' features side by side in an LSTM of layers.

Source: MMSA (thuiar/MMSA, singleTask/EF_LSTM.py); Williams et al., Recognizing emotions
in video using multimodal DNN feature fusion, Challenge-HML 2018.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from msa_jax.layers.dropout import Dropout
from msa_jax.layers.normalization import StepBatchNorm
from msa_jax.layers.recurrent import RecurrentStack
from msa_jax.models.aligned import aligned, check_aligned
from msa_jax.models.late_fusion.base import COMPAT
from msa_jax.models.options import check, construct, defaults
from msa_jax.models.outputs import (
  REGRESSION,
  OutputSpec,
  primary_output,
  shape_predictions,
)
from msa_jax.models.system import Options, System
from msa_jax.typing import MODALITIES, Batch, ModelOutput, Spec


class EFLSTM(nn.Module):
  """The network, by default with MMSA's sizes for MOSI.

    model = EFLSTM()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Attributes:
    output: the task predicted.
    modalities: names in canonical order; every batch must have them, at common steps.
    num_steps: steps that the norm tells apart: those of the longest sequence.
    hidden_dim: width of every layer's state, and of the layer after them.
    num_layers: layers of the LSTM.
    dropout: rate between its layers, on its last state, and before the output.
    compat: `mmsa` = padding counts as steps, in the norm's statistics too, and frames
      are averaged in windows, one for each step of the text, as in MMSA.
  """

  output: OutputSpec = REGRESSION
  modalities: tuple[str, ...] = MODALITIES
  num_steps: int = 50
  hidden_dim: int = 128
  num_layers: int = 4
  dropout: float = 0.5
  compat: str = "none"

  def __post_init__(self):
    check(
      self,
      choices={"compat": COMPAT},
      positive=("num_steps", "hidden_dim", "num_layers"),
      rates=("dropout",),
    )
    super().__post_init__()

  @nn.compact
  def __call__(self, batch: Batch, *, train: bool = False) -> ModelOutput:
    """Predicts every sample; reports `last`, the LSTM's last valid state.

    Raises:
      UserError: the batch lacks a modality.
    """
    streams = aligned(batch, self.modalities, self.compat)
    features = jnp.concatenate([streams.features[n] for n in self.modalities], -1)
    entries = jnp.concatenate(
      [
        jnp.broadcast_to(streams.masks[n][..., None], streams.features[n].shape)
        for n in self.modalities
      ],
      axis=-1,
    )
    norm = StepBatchNorm(not train, self.num_steps, name="norm")
    stack = RecurrentStack(
      self.hidden_dim,
      self.num_layers,
      dropout=self.dropout,
      deterministic=not train,
      name="lstm",
    )
    _, ends = stack(norm(features, entries), streams.real)
    last = ends[:, -1]
    hidden = Dropout(self.dropout, not train, name="drop_last")(last)
    hidden = nn.relu(nn.Dense(self.hidden_dim, name="hidden")(hidden))
    hidden = Dropout(self.dropout, not train, name="drop_hidden")(hidden)
    values = nn.Dense(self.output.num_outputs, name="out")(hidden)
    predictions = {self.output.name: shape_predictions(self.output, values)}
    return ModelOutput(predictions, {"last": last})


def options() -> dict[str, Any]:
  """Options of the system (`config.model`): the fields of `EFLSTM`, but for
  `num_steps`, which is the corpus's longest sequence."""
  return {"name": "ef_lstm", **defaults(EFLSTM, "num_steps")}


def build(options: Options, spec: Spec) -> EFLSTM:
  """Builds the network for a corpus.

  Raises:
    UserError: a value out of range, or modalities that have steps of their own.
  """
  check_aligned("ef_lstm", options["compat"], spec)
  steps = spec.lengths.get("text") if options["compat"] == "mmsa" else None
  return construct(
    EFLSTM,
    options,
    output=primary_output(options, spec),
    modalities=spec.modalities,
    num_steps=steps or max(spec.lengths.values()),
  )


SYSTEM = System(build=build, options=defaults(EFLSTM, "num_steps"))
