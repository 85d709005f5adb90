"""What a run's config says of the text encoder inside its model."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msa_jax.config.options import TextConfig
from msa_jax.errors import UserError
from msa_jax.text import adapters, weights
from msa_jax.text.adapters import LowRank
from msa_jax.text.bert import EncoderConfig

# Linguistic inputs of SentiLARE and the rows of their tables, the last that of padding.
# Source: H-GEM (2026), Eq. 2; sizes as in CENet's released code.
LINGUISTIC = (("pos", 5), ("word_polarity", 3), ("sentence_polarity", 6))
# First part of the path of every parameter of the encoder.
PARAMETERS = "text_encoder"


def trained_layers(finetune: str, n_layers: int) -> int:
  """How many of the upper layers' weights are trained; -1 = all, and the embeddings.

  Args:
    finetune: `all`, `top_<n>` or `lora`, as `options.check` has passed them.
    n_layers: of the encoder.

  Raises:
    UserError: more layers than there are.
  """
  if finetune == "lora":
    return 0
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
  return path[0] == PARAMETERS and path[1] in ("embeddings", "relative", "lower")


def low_rank(text: TextConfig) -> LowRank | None:
  """The adapters that are trained in place of the encoder, or None."""
  if text.finetune != "lora":
    return None
  return LowRank(text.lora_rank, text.lora_alpha, text.lora_projections)


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
  return laid_out(text, expected, found.params)


def without_adapters(params: Mapping[str, Any]) -> dict[str, Any]:
  """The parameters that a checkpoint has values for."""
  return {name: part for name, part in params.items() if name != "adapters"}


def plain(text: TextConfig, params: Mapping[str, Any]) -> dict[str, Any]:
  """Parameters of a run's encoder in one stack, its adapters merged; the reverse of
  `laid_out`.

  Args:
    text: the run's.
    params: of the encoder.
  """
  made, options = weights.joined(without_adapters(params)), low_rank(text)
  if options is not None:
    made["layers"] = adapters.merged(made["layers"], params["adapters"], options)
  return made


def laid_out(
  text: TextConfig, encoder: EncoderConfig, params: Mapping[str, Any]
) -> dict[str, Any]:
  """Parameters of an encoder in one stack, as those of a run's encoder.

  Args:
    text: the run's.
    encoder: its sizes.
    params: with or without tables of linguistic inputs, which start at zero.
  """
  trained = trained_layers(text.finetune, encoder.n_layers)
  params = weights.split(params, trained)
  tables = weights.with_extras({}, encoder)
  known = {*weights.embedding_names(), *tables}
  own = {k: v for k, v in params["embeddings"].items() if k in known}
  return {**params, "embeddings": {**tables, **own}}


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
  weights.export(plain(text, params[PARAMETERS]), source, encoder, Path(folder))
