"""Names that are written in options, those of splits, and those that rooms share."""

from collections.abc import Collection, Iterable

# Of text that was tokenised here. Extras of a split, [n t]: the word that each step
# came from (-1 = none, as of [CLS]), and the token ids that features were made of;
# [n s]: those of neighbouring utterances that were read beside (-1 = nothing).
TEXT_WORDS = "text_words"
TEXT_TOKENS = "text_tokens"
TEXT_CONTEXT = "text_context"
# Note of a corpus: "words" = each step of the text was made of its own word alone.
TEXT_STEPS = "text_steps"

FOLDS = "folds"  # what a folder of folds lists them under, in its JSON files


def fold_folder(number: int) -> str:
  """Name of the folder of a fold's run, in that of all."""
  return f"fold_{number}"


def split_names(entries: Iterable[str]) -> tuple[str, ...]:
  """Names of an option of several, whose flag `--option=a,b` arrives as one string."""
  return tuple(n.strip() for e in entries for n in str(e).split(",") if n.strip())


def held_out_split(names: Collection[str]) -> str:
  """The split that figures speak of: test, or validation where there is no test."""
  return "test" if "test" in names else "valid"
