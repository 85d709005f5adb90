"""`config.text`: where a run's text comes from, and what contradicts it."""

import re

from msa_jax.config.options import TextConfig
from msa_jax.errors import UserError

INPUTS = ("features", "encoder")
STARTS = ("pretrained", "scratch")
_FINETUNE = re.compile(r"none|[Ff]alse|all|[Tt]rue|top_[1-9][0-9]*")


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
      f"config.text.finetune={text.finetune!r} must be none, all or top_<n>."
    )
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
  if text.linguistic and not text.is_tuned:
    raise UserError(
      "config.text.linguistic=True needs config.text.input='encoder' and"
      f" finetune='all' (not {text.finetune!r}): a checkpoint has no tables of these"
      " inputs, so they have to be trained."
    )
