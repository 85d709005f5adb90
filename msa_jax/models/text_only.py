"""Text alone: the system that every fusion has to beat.

Features of a frozen encoder, or an encoder trained inside, are pooled and read by one
linear layer per task: what a fine-tuned language model does without audio and vision.

Source: no paper; the usual head of a fine-tuned sentence encoder (BERT, Devlin et al.,
NAACL 2019, with the mean of the states in place of the first one's).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import POOLS, pool_steps
from msa_jax.models.options import check, defaults
from msa_jax.models.outputs import REGRESSION, OutputSpec, shape_predictions
from msa_jax.models.system import system_of
from msa_jax.typing import Batch, ModelOutput


def read_text(
  batch: Batch, pool: str
) -> tuple[Float[Array, "b ... d"], Bool[Array, "b ..."]]:
  """One vector of text for every prediction, and whether there is any text for it.

  Args:
    batch: what is unavailable is hidden (`layers.hide_unavailable`).
    pool: of `layers.masking.POOLS`, over the visible steps of an utterance. Steps that
      are utterances of a dialogue have a vector each, and are not pooled.

  Returns:
    [b d] and [b]; of dialogues [b t d] and [b t]. Zero where no step is visible.

  Raises:
    UserError: the batch has no text.
  """
  if "text" not in batch.modalities:
    raise UserError(
      f"the batch has no text, only {', '.join(batch.order)}: choose"
      " config.data.modalities with text."
    )
  text = batch.modalities["text"]
  visible = text.mask & ~text.lost
  if batch.available.ndim == 3:
    return jnp.where(visible[..., None], text.features, 0.0), visible
  return pool_steps(text.features, visible, pool), jnp.any(visible, axis=1)


class TextHeads(nn.Module):
  """Dropout and one linear layer per task, each named after its task.

  Attributes:
    outputs: the tasks.
    dropout: rate on the input.
  """

  outputs: tuple[OutputSpec, ...] = (REGRESSION,)
  dropout: float = 0.1

  @nn.compact
  def __call__(
    self, pooled: Float[Array, "b ... d"], *, train: bool
  ) -> dict[str, Float[Array, "b ..."]]:
    """Task -> prediction, as `ModelOutput.predictions` has it."""
    hidden = Dropout(self.dropout, not train)(pooled)
    return {
      output.name: shape_predictions(
        output, nn.Dense(output.num_outputs, name=output.name)(hidden)
      )
      for output in self.outputs
    }


class TextOnly(nn.Module):
  """The network. Every other modality of a batch is left alone.

    model = TextOnly()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Attributes:
    outputs: the tasks predicted, any number of them.
    pool: what stands for an utterance: the `mean` of its visible steps, or the `first`
      one (a sentence token such as BERT's [CLS]).
    dropout: rate on the pooled text.
  """

  outputs: tuple[OutputSpec, ...] = (REGRESSION,)
  pool: str = "mean"
  dropout: float = 0.1

  def __post_init__(self):
    check(self, choices={"pool": POOLS}, rates=("dropout",))
    super().__post_init__()

  @nn.compact
  def __call__(self, batch: Batch, *, train: bool = False) -> ModelOutput:
    """Predicts every sample, or every utterance of dialogues; a row without text gets
    what the linear layer says of zeros, its bias."""
    pooled, _ = read_text(batch, self.pool)
    heads = TextHeads(self.outputs, self.dropout, name="heads")
    return ModelOutput(heads(pooled, train=train), {"text": pooled})


def options() -> Mapping[str, Any]:
  """Options of the system (`config.model`): the fields of `TextOnly`, and the `tasks`
  to predict, () = sentiment and emotion as the corpus has them."""
  fields = defaults(TextOnly)
  del fields["task"]
  return {"name": "text_only", "tasks": (), **fields}


SYSTEM = system_of(
  TextOnly,
  options={key: value for key, value in options().items() if key != "name"},
  units=("utterance", "dialogue"),
  text_heads=("heads",),
  search_space={"model.dropout": "0..0.6", "model.pool": "mean,first"},
)
