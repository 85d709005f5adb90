"""What a run's config says of the text encoder inside its model."""

import dataclasses
from pathlib import Path
from typing import Any

import ml_collections

from msa_jax.errors import UserError
from msa_jax.text import options as text_options
from msa_jax.text import weights
from msa_jax.text.bert import EncoderConfig

# Linguistic inputs of SentiLARE and the rows of their tables, the last that of padding.
# Source: H-GEM (2026), Eq. 2; sizes as in CENet's released code.
LINGUISTIC = (("pos", 5), ("word_polarity", 3), ("sentence_polarity", 6))
# First part of the path of every parameter of the encoder.
PARAMETERS = "text_encoder"


def is_tuned(config: ml_collections.ConfigDict) -> bool:
  """Whether the model reads token ids, through an encoder that is trained with it."""
  # Configs of older runs have no such options.
  return "text" in config and text_options.is_tuned(config.text)


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


def freezes(config: ml_collections.ConfigDict) -> bool:
  """Whether a part of the encoder inside the model stays as it was."""
  if not is_tuned(config):
    return False
  return trained_layers(config.text.finetune, config.spec.encoder.n_layers) >= 0


def is_frozen(path: tuple[str, ...]) -> bool:
  """Whether a parameter belongs to the part that stays, where one does (`freezes`)."""
  return path[0] == PARAMETERS and path[1] in ("embeddings", "lower")


def encoder_spec(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Sizes of the pretrained encoder, for `config.spec.encoder`; reads its folder.

  Raises:
    UserError: no such encoder, or `config.text` contradicts it or itself.
  """
  options = config.text
  found = weights.read_config(weights.locate(options.encoder))
  trained = trained_layers(options.finetune, found.n_layers)
  if options.linguistic:
    if trained >= 0:
      raise UserError(
        f"config.text.finetune={options.finetune!r}: the linguistic inputs' tables lie"
        " below all layers and are to be trained; choose 'all', or"
        " config.text.linguistic=False."
      )
    found = dataclasses.replace(found, extras=LINGUISTIC)
  return dataclasses.asdict(found)


def encoder_config(config: ml_collections.ConfigDict) -> EncoderConfig:
  """The encoder of a resolved config; reads no file."""
  options = config.spec.encoder.to_dict()
  extras = tuple((name, rows) for name, rows in options.pop("extras"))
  return EncoderConfig(**options, extras=extras)


def pretrained(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Parameters that the encoder of a resolved config starts from; reads its folder.

  Tables of linguistic inputs start at zero, so that the encoder starts as it was.

  Raises:
    UserError: the folder no longer holds the encoder of the config.
  """
  expected = encoder_config(config)
  found = weights.load(config.text.encoder)
  if dataclasses.replace(found.config, extras=expected.extras) != expected:
    raise UserError(
      f"config.text.encoder={config.text.encoder!r}: {found.folder} holds another"
      " encoder than when the run began."
    )
  trained = trained_layers(config.text.finetune, expected.n_layers)
  params = weights.split(found.params, trained)
  return {**params, "embeddings": weights.with_extras(params["embeddings"], expected)}


def export(
  config: ml_collections.ConfigDict, params: dict[str, Any], folder: str | Path
) -> None:
  """Writes the encoder of a trained model as a Hugging Face folder.

  Args:
    config: resolved config of the run.
    params: of the model.
    folder: where to write; made if need be.

  Raises:
    UserError: the run trained no encoder.
  """
  if not is_tuned(config):
    raise UserError(
      f"the run trained no text encoder (config.text.finetune="
      f"{config.text.finetune!r}): its text is features, or comes from"
      " config.text.encoder as it is."
    )
  source = weights.locate(config.text.encoder)
  weights.export(params[PARAMETERS], source, encoder_config(config), Path(folder))
