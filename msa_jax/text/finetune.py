"""What a run's config says of the text encoder inside its model."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msa_jax.config.options import TextConfig
from msa_jax.errors import UserError
from msa_jax.text import weights
from msa_jax.text.bert import EncoderConfig

# Linguistic inputs of SentiLARE and the rows of their tables, the last that of padding.
# Source: H-GEM (2026), Eq. 2; sizes as in CENet's released code.
LINGUISTIC = (("pos", 5), ("word_polarity", 3), ("sentence_polarity", 6))
# First part of the path of every parameter of the encoder.
PARAMETERS = "text_encoder"


def trained_layers(finetune: str, n_layers: int) -> int:
  """How many of the upper layers are trained; -1 = all, and the embeddings.

  Args:
    finetune: `all`, or `top_<n>`, as `options.check` has passed them.
    n_layers: of the encoder.

  Raises:
    UserError: more layers than there are.
  """
  if not finetune.startswith("top_"):
    return -1
  count = int(finetune.removeprefix("top_"))
  if count > n_layers:
    raise UserError(
      f"config.text.finetune={finetune!r}: the encoder has {n_layers} layers."
    )
  return count


def freezes(text: TextConfig, encoder: EncoderConfig) -> bool:
  """Whether a part of the encoder inside the model stays as it was."""
  return trained_layers(text.finetune, encoder.n_layers) >= 0


def is_frozen(path: tuple[str, ...]) -> bool:
  """Whether a parameter belongs to the part that stays, where one does (`freezes`)."""
  return path[0] == PARAMETERS and path[1] in ("embeddings", "lower")


def encoder_sizes(text: TextConfig) -> EncoderConfig:
  """Sizes of the pretrained encoder; reads its folder.

  Raises:
    UserError: no such encoder, or `config.text` contradicts it or itself.
  """
  found = weights.read_config(weights.locate(text.encoder))
  trained = trained_layers(text.finetune, found.n_layers)
  if text.linguistic:
    if trained >= 0:
      raise UserError(
        f"config.text.finetune={text.finetune!r}: the linguistic inputs' tables lie"
        " below all layers and are to be trained; choose 'all', or"
        " config.text.linguistic=False."
      )
    found = dataclasses.replace(found, extras=LINGUISTIC)
  return found


def pretrained(text: TextConfig, expected: EncoderConfig) -> dict[str, Any]:
  """Parameters that the encoder of a run starts from; reads its folder.

  Tables of linguistic inputs start at zero, so that the encoder starts as it was.

  Raises:
    UserError: the folder no longer holds the encoder of the run.
  """
  found = weights.load(text.encoder)
  if dataclasses.replace(found.config, extras=expected.extras) != expected:
    raise UserError(
      f"config.text.encoder={text.encoder!r}: {found.folder} holds another"
      " encoder than when the run began."
    )
  trained = trained_layers(text.finetune, expected.n_layers)
  params = weights.split(found.params, trained)
  return {**params, "embeddings": weights.with_extras(params["embeddings"], expected)}


def export(
  text: TextConfig,
  encoder: EncoderConfig,
  params: Mapping[str, Any],
  folder: str | Path,
) -> None:
  """Writes the encoder of a trained model as a Hugging Face folder.

  Args:
    text: the run's.
    encoder: its sizes.
    params: of the model.
    folder: where to write; made if need be.

  Raises:
    UserError: the run trained no encoder.
  """
  if not text.is_tuned:
    raise UserError(
      f"the run trained no text encoder (config.text.finetune="
      f"{text.finetune!r}): its text is features, or comes from"
      " config.text.encoder as it is."
    )
  source = weights.locate(text.encoder)
  weights.export(params[PARAMETERS], source, encoder, Path(folder))
