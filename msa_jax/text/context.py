"""Neighbouring utterances as context: what an encoder reads beside each utterance.

They are the second segment of its input, the utterances before and after in the order
in which they were spoken, those of the same video or dialogue and the same split only:
what another split says never reaches an encoder. A model sees the states of the
utterance itself, which have attended to all.

Source: Wu et al., "Multimodal Multi-loss Fusion Network" (NAACL 2024), of MOSI and
MOSEI; the two segments are those of Devlin et al. 2019.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Bool, Int

from msa_jax.config.options import TextConfig
from msa_jax.errors import UserError
from msa_jax.typing import Corpus, Split

UNLABELLED = "predict"  # a split that may lack groups: its texts stand alone


class Template(NamedTuple):
  """Special tokens of a second segment.

  Attributes:
    before: ids between the end of the first segment and the second.
    after: ids at the end of the second.
  """

  before: list[int]
  after: list[int]


class Beside(NamedTuple):
  """Context of a split's utterances.

  Attributes:
    tokens: [n s] ids, special ones included; -1 = nothing.
    cut: utterances whose neighbours did not all fit.
  """

  tokens: Int[np.ndarray, "n s"]
  cut: int


def template_of(tokenizer: Any) -> Template:
  """How a tokenizer marks a second segment."""

  def runs(*texts: str) -> list[list[int]]:
    made = tokenizer(*texts, return_special_tokens_mask=True)
    found: list[list[int]] = [[]]
    previous = 1
    for number, special in zip(
      made["input_ids"], made["special_tokens_mask"], strict=True
    ):
      if special and not previous:
        found.append([])
      if special:
        found[-1].append(number)
      previous = special
    return found

  (_, end), pair = runs("a")[:2], runs("a", "a")
  between = pair[1] if len(pair) > 2 else end
  return Template(between[len(end) :], pair[-1])


def neighbours(
  split: Split, before: int, after: int, where: str
) -> list[tuple[list[int], list[int]]]:
  """Rows of the utterances before and after each, the nearest first.

  Raises:
    UserError: the split does not say which utterances belong together.
  """
  if split.groups is None and where == UNLABELLED:
    logging.warning(
      "split %s says no videos: its texts are read without context", where
    )
    return [([], []) for _ in range(len(split))]
  if split.groups is None:
    raise UserError(
      f"config.text.context=({before}, {after}): split {where!r} does not say which"
      " utterances belong together; it needs ids such as 'video$_$clip' or"
      " 'video[clip]', or a column of videos or dialogues."
    )
  found: list[tuple[list[int], list[int]]] = [([], [])] * len(split)
  for rows in split.rows_by_group().values():
    order = rows.tolist()
    for place, row in enumerate(order):
      earlier = order[max(0, place - before) : place][::-1]
      found[row] = (earlier, order[place + 1 : place + 1 + after])
  return found


def join(
  earlier: Sequence[list[int]], later: Sequence[list[int]], room: int
) -> tuple[list[int], bool]:
  """Tokens of neighbours in the order in which they were spoken.

  Args:
    earlier, later: tokens of each, the nearest first.
    room: most tokens; the nearest come first, an earlier one before a later one as
      near, and what is cut is what lies farthest away.

  Returns:
    The tokens, and whether some were left out.
  """
  sides: tuple[list[int], list[int]] = ([], [])
  for distance in range(max(len(earlier), len(later))):
    if distance < len(earlier):
      kept = earlier[distance][-room:] if room else []
      sides[0][:0] = kept
      room -= len(kept)
    if distance < len(later):
      kept = later[distance][:room]
      sides[1].extend(kept)
      room -= len(kept)
  joined = sides[0] + sides[1]
  return joined, len(joined) < sum(map(len, [*earlier, *later]))


def of_split(
  split: Split,
  contents: Sequence[list[int]],
  lengths: Sequence[int],
  options: TextConfig,
  most: int,
  template: Template,
  where: str,
) -> tuple[list[list[int]], int]:
  """Context of every utterance of a split.

  Args:
    split: says which utterances belong together.
    contents: tokens of each, without special ones.
    lengths: tokens that each has in its own segment; 0 = it has no text, and gets no
      context.
    options: `config.text`.
    most: tokens that the encoder can read at once.
    template: of the tokenizer.
    where: name of the split, for messages.

  Returns:
    Ids, special ones included, and of how many utterances some were left out.
  """
  before, after = options.context
  around = neighbours(split, before, after, where)
  marks = len(template.before) + len(template.after)
  rows, cut = [], 0
  for (earlier, later), length in zip(around, lengths, strict=True):
    room = max(0, min(options.context_length, most - length) - marks)
    near = [contents[row] for row in earlier], [contents[row] for row in later]
    tokens, left_out = join(*near, room) if length else ([], False)
    rows.append([*template.before, *tokens, *template.after] if tokens else [])
    cut += left_out
  return rows, cut


def packed(corpora: Sequence[dict[str, tuple[list[list[int]], int]]]) -> list[Any]:
  """What `of_split` gave for splits of corpora, in arrays of one width."""
  width = max(
    (len(row) for each in corpora for rows, _ in each.values() for row in rows),
    default=0,
  )

  def array(rows):
    tokens = np.full((len(rows), max(1, width)), -1, np.int32)
    for place, row in zip(tokens, rows, strict=True):
      place[: len(row)] = row
    return tokens

  return [
    {name: Beside(array(rows), cut) for name, (rows, cut) in each.items()}
    for each in corpora
  ]


def noted(corpus: Corpus, options: TextConfig, beside: dict[str, Beside]) -> Corpus:
  """The corpus with the context of its text, and a note of it."""
  splits = {}
  for name, split in corpus.splits.items():
    text = split.modalities["text"]
    text = dataclasses.replace(text, context={"tokens": beside[name].tokens})
    modalities = {**split.modalities, "text": text}
    splits[name] = dataclasses.replace(split, modalities=modalities)
  cut = {name: each.cut for name, each in beside.items() if each.cut}
  about = {"context": list(options.context), "context_cut": cut}
  notes = {**corpus.notes, "text": {**corpus.notes["text"], **about}}
  return dataclasses.replace(corpus, splits=splits, notes=notes)


def place(
  tokens: Int[Array | np.ndarray, "b t"],
  lengths: Int[Array | np.ndarray, " b"],
  context: Int[Array | np.ndarray, "b s"],
  most: int,
) -> tuple[Int[Array, "b l"], Int[Array, "b l"], Bool[Array, "b l"]]:
  """Utterances and their context as one input each, without a gap between the two.

  Args:
    tokens: the utterance's own, its real ones first.
    lengths: how many are real.
    context: -1 = nothing.
    most: tokens that the encoder can read at once.

  Returns:
    Where each of the l = min(t + s, most) tokens stands in `[tokens, context]`; the
    number of its segment, 0 or 1; and whether there is one.
  """
  steps, beside = tokens.shape[1], context.shape[1]
  step = jnp.arange(min(steps + beside, most))[None]
  own = step < lengths[:, None]
  total = lengths + jnp.sum(context >= 0, axis=1)
  index = jnp.where(
    own, step, jnp.minimum(steps + step - lengths[:, None], steps + beside - 1)
  )
  segment = (~own).astype(jnp.int32)
  return index, segment, step < total[:, None]
