"""MFN: memory fusion network.

One LSTM per modality; attention over their cells before and after each step finds what
they have to do with each other, and a gated memory keeps it.

Source: Zadeh et al., Memory fusion network for multi-view sequential learning, AAAI
2018 (arXiv:1802.00927), as in MMSA (thuiar/MMSA, singleTask/MFN.py).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from msa_jax.models.aligned import aligned, check_aligned
from msa_jax.models.late_fusion.base import COMPAT, check_by_modality
from msa_jax.models.mfn.parts import GatedMemory, Mlp, before, lockstep
from msa_jax.models.options import check, construct, defaults
from msa_jax.models.outputs import (
  REGRESSION,
  OutputSpec,
  primary_output,
  shape_predictions,
)
from msa_jax.models.system import Options, System
from msa_jax.typing import MODALITIES, Batch, ModelOutput, Spec

PARTS = ("attention", "candidate", "retain", "update", "output")


class MFN(nn.Module):
  """The network, by default with MMSA's sizes for MOSI.

    model = MFN()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Attributes:
    output: the task predicted.
    modalities: names in canonical order; every batch must have them, at common steps.
    hidden_dims: modality -> width of its LSTM.
    memory_dim: width of the memory.
    mlp_dims: hidden units of the `attention`, of the `candidate` for the memory, of
      its gates `retain` and `update`, and of the `output`.
    dropout: rates on these units.
    compat: `mmsa` = padding counts as steps, and frames are averaged in windows, one
      for each step of the text, as in MMSA.
  """

  output: OutputSpec = REGRESSION
  modalities: tuple[str, ...] = MODALITIES
  hidden_dims: Mapping[str, int] = FrozenDict(text=256, audio=32, vision=256)
  memory_dim: int = 400
  mlp_dims: Mapping[str, int] = FrozenDict(
    attention=32, candidate=64, retain=256, update=32, output=128
  )
  dropout: Mapping[str, float] = FrozenDict(
    attention=0.2, candidate=0.0, retain=0.7, update=0.5, output=0.0
  )
  compat: str = "none"

  def __post_init__(self):
    check(
      self,
      choices={"compat": COMPAT},
      positive=("hidden_dims", "memory_dim", "mlp_dims"),
      rates=("dropout",),
    )
    check_by_modality(self, "hidden_dims")
    super().__post_init__()

  @nn.compact
  def __call__(self, batch: Batch, *, train: bool = False) -> ModelOutput:
    """Predicts every sample; reports `last` (the LSTMs' outputs) and `memory`.

    Raises:
      UserError: the batch lacks a modality.
    """
    units, rates = self.mlp_dims, self.dropout
    states = lockstep(aligned(batch, self.modalities, self.compat), self.hidden_dims)
    cells = jnp.concatenate(list(states.cells.values()), axis=-1)
    change = jnp.concatenate([before(cells), cells], axis=-1)  # [t b 2c]
    attention = Mlp(
      units["attention"],
      change.shape[-1],
      rates["attention"],
      not train,
      name="attention",
    )
    weights = jax.nn.softmax(attention(change), axis=-1)
    attended = weights * change
    candidate = Mlp(
      units["candidate"],
      self.memory_dim,
      rates["candidate"],
      not train,
      name="candidate",
    )
    candidates = jnp.tanh(candidate(attended))
    memory = GatedMemory(
      self.memory_dim, self.mlp_dims, self.dropout, not train, name="memory"
    )(attended, candidates, states.real)
    last = states.last()
    head = Mlp(
      units["output"],
      self.output.num_outputs,
      rates["output"],
      not train,
      name="output",
    )
    values = head(jnp.concatenate([last, memory], axis=-1))
    predictions = {self.output.name: shape_predictions(self.output, values)}
    return ModelOutput(predictions, {"last": last, "memory": memory})


def options() -> dict[str, Any]:
  """Options of the system (`config.model`): the fields of `MFN`."""
  return {"name": "mfn", **defaults(MFN)}


def build(options: Options, spec: Spec) -> MFN:
  """Builds the network for a corpus.

  Raises:
    UserError: a value out of range, or modalities that have steps of their own.
  """
  check_aligned("mfn", options["compat"], spec)
  return construct(
    MFN,
    options,
    output=primary_output(options, spec),
    modalities=spec.modalities,
  )


SYSTEM = System(build=build, options=defaults(MFN))
