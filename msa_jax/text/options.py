"""`config.text`: where a run's text comes from, and what contradicts it."""

import re
from typing import Any

import ml_collections

from msa_jax.errors import UserError

INPUTS = ("features", "encoder")
_FINETUNE = re.compile(r"none|[Ff]alse|all|[Tt]rue|top_[1-9][0-9]*")


def defaults() -> dict[str, Any]:
  """The options of `config.text`, at their defaults."""
  return {
    "input": "features",  # encoder: the transcripts, through `encoder`
    "encoder": "",  # folder of a Hugging Face checkpoint, or a name of the hub
    # none: its last states are features, made once; all, or top_<n>: trained along,
    # whole or the n upper layers.
    "finetune": "none",
    "learning_rate": 2e-5,  # of the encoder
    "remat": False,  # less memory: layers are computed again in the backward pass
    "linguistic": False,  # SentiLARE's inputs: part of speech and polarities
    "max_length": 0,  # tokens kept; 0 = as long as the corpus and the encoder allow
    "cache": "",  # folder of features made before; "" = the user's cache folder
  }


def is_tuned(text: ml_collections.ConfigDict) -> bool:
  """Whether `config.text` has an encoder trained with the model."""
  if text.input != "encoder":
    return False
  return str(text.finetune).lower() not in ("none", "false")


def check(config: ml_collections.ConfigDict) -> None:
  """Checks the group, on its own and against what samples are.

  Args:
    config: of a run; those of older runs have no such group.

  Raises:
    UserError: naming the value, the rule and the choices.
  """
  text = config.get("text")
  if text is None:
    return
  if text.input not in INPUTS:
    raise UserError(f"config.text.input={text.input!r} must be one of {INPUTS}.")
  if (text.input == "encoder") != bool(text.encoder):
    raise UserError(
      f"config.text.encoder={text.encoder!r} goes with config.text.input='encoder', and"
      f" that with a folder or a name of the hub; the input is {text.input!r}."
    )
  if not _FINETUNE.fullmatch(str(text.finetune)):
    raise UserError(
      f"config.text.finetune={text.finetune!r} must be none, all or top_<n>."
    )
  if text.learning_rate <= 0:
    raise UserError(f"config.text.learning_rate={text.learning_rate} must be positive.")
  if text.max_length and text.max_length < 3:
    raise UserError(
      f"config.text.max_length={text.max_length} must be 0 (as long as the corpus), or"
      " 3 at least: a token between the two special ones."
    )
  if text.linguistic and not is_tuned(text):
    raise UserError(
      "config.text.linguistic=True needs config.text.input='encoder' and"
      f" finetune='all' (not {text.finetune!r}): a checkpoint has no tables of these"
      " inputs, so they have to be trained."
    )
