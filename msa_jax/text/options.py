"""`config.text`: where a run's text comes from, and what contradicts it."""

import re

from msa_jax.config.options import TextConfig
from msa_jax.errors import UserError
from msa_jax.text.adapters import PROJECTIONS

INPUTS = ("features", "encoder")
FROZEN_DTYPES = ("float32", "bfloat16")
STARTS = ("pretrained", "scratch")
_FINETUNE = re.compile(r"none|[Ff]alse|all|[Tt]rue|lora|top_[1-9][0-9]*")


def check(text: TextConfig) -> None:
  """Checks the group.

  Raises:
    UserError: naming the value, the rule and the choices.
  """
  if text.input not in INPUTS:
    raise UserError(f"config.text.input={text.input!r} must be one of {INPUTS}.")
  if (text.input == "encoder") != bool(text.encoder):
    raise UserError(
      f"config.text.encoder={text.encoder!r} goes with config.text.input='encoder', and"
      f" that with a folder or a name of the hub; the input is {text.input!r}."
    )
  if not _FINETUNE.fullmatch(text.finetune):
    raise UserError(
      f"config.text.finetune={text.finetune!r} must be none, all, top_<n> or lora."
    )
  _check_frozen(text)
  if text.learning_rate <= 0:
    raise UserError(f"config.text.learning_rate={text.learning_rate} must be positive.")
  if text.start not in STARTS:
    raise UserError(f"config.text.start={text.start!r} must be one of {STARTS}.")
  if text.start == "scratch" and not text.is_tuned:
    raise UserError(
      "config.text.start='scratch' is of an encoder that is trained:"
      f" config.text.finetune={text.finetune!r} must be all."
    )
  if not 0.0 < text.layer_decay <= 1.0:
    raise UserError(f"config.text.layer_decay={text.layer_decay} must be in (0, 1].")
  if text.max_length and text.max_length < 3:
    raise UserError(
      f"config.text.max_length={text.max_length} must be 0 (as long as the corpus), or"
      " 3 at least: a token between the two special ones."
    )
  if len(text.context) != 2 or min(text.context) < 0:
    raise UserError(
      f"config.text.context={text.context} must be two numbers, of utterances before"
      " and after, such as 2,1."
    )
  if any(text.context) and not text.is_encoded:
    raise UserError(
      f"config.text.context={text.context} is read by an encoder: it goes with"
      " config.text.input='encoder'."
    )
  if text.context_length < 3:
    raise UserError(
      f"config.text.context_length={text.context_length} must be 3 at least: a token"
      " and the special ones."
    )
  if text.linguistic and any(text.context):
    raise UserError(
      f"config.text.context={text.context}: neighbours have no linguistic inputs;"
      " choose config.text.linguistic=False."
    )
  if text.linguistic and not text.is_tuned:
    raise UserError(
      "config.text.linguistic=True needs config.text.input='encoder' and"
      f" finetune='all' (not {text.finetune!r}): a checkpoint has no tables of these"
      " inputs, so they have to be trained."
    )


def _check_frozen(text: TextConfig) -> None:
  if text.frozen_dtype not in FROZEN_DTYPES:
    raise UserError(
      f"config.text.frozen_dtype={text.frozen_dtype!r} must be one of {FROZEN_DTYPES}."
    )
  if text.lora_rank < 1 or text.lora_alpha <= 0:
    raise UserError(
      f"config.text.lora_rank={text.lora_rank} and lora_alpha={text.lora_alpha} must be"
      " positive."
    )
  named = text.lora_projections
  if not named or len(set(named)) < len(named) or not set(named) <= set(PROJECTIONS):
    raise UserError(
      f"config.text.lora_projections={named} must be one or more of"
      f" {tuple(PROJECTIONS)}, each once."
    )
