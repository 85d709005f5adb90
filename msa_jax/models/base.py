"""What a system hands to the trainer."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import ml_collections

from msa_jax.typing import Batch, ModelOutput


def no_auxiliary(
  config: ml_collections.ConfigDict, output: ModelOutput, batch: Batch
) -> Mapping[str, jax.Array]:
  """Auxiliary losses of a system that has none beyond `output.losses`."""
  del config, batch
  return output.losses


def one_partition(path: tuple[str, ...]) -> str:
  """Every parameter trains with the learning rate of the new modules."""
  del path
  return "new"


class System(NamedTuple):
  """One row of the table in `models/__init__.py`.

  Attributes:
    build: config -> Flax module with `__call__(batch, *, train) -> ModelOutput`.
      Reads `config.model` (its own options) and `config.spec` (widths, lengths and
      tasks of the corpus).
    auxiliary: (config, output, batch) -> raw auxiliary losses by name, scalars
      averaged over the batch's real samples; weights are applied by the trainer
      (`config.loss.<name>`).
    partition: parameter path -> name of its optimizer partition
      (`config.optim.lr_<name>`).
  """

  build: Callable[[ml_collections.ConfigDict], nn.Module]
  auxiliary: Callable[..., Mapping[str, jax.Array]] = no_auxiliary
  partition: Callable[[tuple[str, ...]], str] = one_partition
