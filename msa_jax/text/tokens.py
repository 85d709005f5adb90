"""Transcripts as token ids, and the word that each token came from."""

import dataclasses
import os
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from msa_jax.config.options import TextConfig
from msa_jax.errors import UserError
from msa_jax.names import TEXT_WORDS
from msa_jax.safe_io import files
from msa_jax.text import context, sentilare
from msa_jax.text.bert import EncoderConfig
from msa_jax.text.words import word_spans
from msa_jax.typing import Corpus, Sequences, Split, modality_order

SPECIAL = (-1, -1)  # span of a token that no character of the transcript made
_FILES = (
  "tokenizer.json",
  "vocab.txt",
  "vocab.json",
  "sentencepiece.bpe.model",
  "spm.model",
)
_COMPARED = 64  # samples by which a file's own ids are told to be of this vocabulary


class Row(NamedTuple):
  """Tokens of one transcript.

  Attributes:
    ids: of the encoder's vocabulary, special ones included.
    spans: first character in `text` and one past the last, or `SPECIAL`.
    text: the transcript.
    is_cut: whether tokens were left out.
  """

  ids: list[int]
  spans: list[tuple[int, int]]
  text: str
  is_cut: bool = False

  @property
  def is_empty(self) -> bool:
    """Whether there are special tokens only."""
    return all(span == SPECIAL for span in self.spans)

  @property
  def content(self) -> list[int]:
    """The ids without special ones."""
    pairs = zip(self.ids, self.spans, strict=True)
    return [number for number, span in pairs if span != SPECIAL]

  def cut(self, limit: int) -> "Row":
    """At most `limit` tokens, of which the last stays."""
    if len(self.ids) <= limit:
      return self
    ids = [*self.ids[: limit - 1], self.ids[-1]]
    return Row(ids, [*self.spans[: limit - 1], self.spans[-1]], self.text, True)


def load_tokenizer(folder: Path) -> Any:
  """The tokenizer of a Hugging Face folder.

  Raises:
    UserError: `transformers` is not installed, the folder has no tokenizer, or one
      that cannot say where its tokens stand in the text.
  """
  # Read when the package is imported; it warns that PyTorch is absent.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  try:
    import transformers
  except ImportError:
    raise UserError(
      "token ids are made by transformers: pip install 'msa_jax[text]'"
    ) from None
  try:
    # Without any of these an empty vocabulary would be made up.
    if not any((folder / name).is_file() for name in _FILES):
      raise FileNotFoundError(f"none of {', '.join(_FILES)}")
    found = transformers.AutoTokenizer.from_pretrained(
      str(folder), local_files_only=True, use_fast=True
    )
  except Exception as error:  # noqa: BLE001  Whatever it says, one line.
    reason = " ".join(str(error).split())[:120]
    raise UserError(f"{folder}: no readable tokenizer ({reason})") from None
  if not found.is_fast:
    raise UserError(f"{folder}: its tokenizer needs a tokenizer.json")
  return found


def encode(tokenizer: Any, texts: Sequence[str] | np.ndarray) -> list[Row]:
  """Tokens of transcripts, uncut."""
  if not len(texts):
    return []
  texts = [str(text) for text in texts]
  with files.reading(getattr(tokenizer, "name_or_path", "") or "encoder", "tokenizer"):
    made = tokenizer(
      texts,
      truncation=False,
      padding=False,
      return_offsets_mapping=True,
      return_special_tokens_mask=True,
      return_attention_mask=False,
      verbose=False,
    )
  rows = []
  for row, text in enumerate(texts):
    marks = made["special_tokens_mask"][row]
    pairs = zip(made["offset_mapping"][row], marks, strict=True)
    spans: list[tuple[int, int]] = [
      SPECIAL if special else (start, end) for (start, end), special in pairs
    ]
    rows.append(Row(list(made["input_ids"][row]), spans, text))
  return rows


def rows_of(
  split: Split, tokenizer: Any, config: EncoderConfig, where: str
) -> tuple[list[Row], str]:
  """Tokens of a split's transcripts, or those that its file holds already.

  Args:
    split: with `raw_text`, or with `text_bert` (MMSA: ids, mask, segments) among its
      extras, which counts if it is of the encoder's vocabulary.
    tokenizer: of the encoder.
    config: of the encoder.
    where: name of the split, for messages.

  Returns:
    The rows, and which of the two they were made of.

  Raises:
    UserError: the split has neither.
  """
  given = _given(split, config)
  if split.raw_text is None:
    if given is None:
      raise UserError(
        f"split {where} has no raw_text (and no text_bert of this encoder's"
        " vocabulary): config.text.input='encoder' needs transcripts; choose"
        " 'features'."
      )
    return [_rebuilt(tokenizer, ids) for ids in given], "text_bert"
  rows = encode(tokenizer, split.raw_text)
  if given is None:
    return rows, "raw_text"
  same = [
    row.cut(len(ids)).ids == ids for row, ids in zip(rows, given, strict=True) if ids
  ]
  if 2 * sum(same[:_COMPARED]) < len(same[:_COMPARED]):
    return rows, "raw_text"  # The file's ids are of another vocabulary.
  rows = [
    row.cut(len(ids)) if row.cut(len(ids)).ids == ids else _rebuilt(tokenizer, ids)
    for row, ids in zip(rows, given, strict=True)
  ]
  return rows, "text_bert"


def _given(split: Split, config: EncoderConfig) -> list[list[int]] | None:
  stored = split.extras.get("text_bert")
  if stored is None or config.family != "bert":
    return None
  if stored.ndim != 3 or stored[:, 0].min() < 0:
    return None
  if stored[:, 0].max() >= config.vocabulary:
    return None
  return [
    ids[mask > 0].tolist() for ids, mask in zip(stored[:, 0], stored[:, 1], strict=True)
  ]


def _rebuilt(tokenizer: Any, ids: list[int]) -> Row:
  """A row with the text that its word pieces spell."""
  special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
  text, spans = "", []
  for token, piece in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
    if token in special:
      spans.append(SPECIAL)
      continue
    inside = piece.startswith("##")
    text += "" if inside or not text else " "
    piece = piece.removeprefix("##") if inside else piece
    spans.append((len(text), len(text) + len(piece)))
    text += piece
  return Row(ids, spans, text)


def words(row: Row) -> list[int]:
  """Number of the word that each token came from; -1 for special tokens.

  Words are what spaces separate, in Chinese single characters, whatever the encoder.
  """
  return places(row, word_spans(row.text))


def places(row: Row, parts: Sequence[tuple[int, int]]) -> list[int]:
  """Number of the part of the text, of parts in order, that each token starts in."""
  ends = [end for _, end in parts]
  found = []
  for start, end in row.spans:
    while start < end and row.text[start].isspace():
      start += 1  # Some tokenizers count the space before a word to its first token.
    place = min(bisect_right(ends, start), len(ends) - 1)
    found.append(-1 if (start, end) == SPECIAL else place)
  return found


def linguistic(annotator: sentilare.Annotator, row: Row) -> dict[str, list[int]]:
  """SentiLARE's inputs for every token: those of the word it starts in. The polarity
  of the text is unknown, as wherever a model is to predict it."""
  spans, parts, polarities = sentilare.annotate(annotator, row.text)
  units = places(row, spans)
  # One more, for the number -1 of tokens without a word.
  parts = [*parts, sentilare.OTHER]
  polarities = [*polarities, sentilare.NEUTRAL]
  return {
    "pos": [parts[unit] for unit in units],
    "word_polarity": [polarities[unit] for unit in units],
    "sentence_polarity": [sentilare.UNKNOWN] * len(units),
  }


def tokenise(
  corpora: Sequence[Corpus],
  options: TextConfig,
  folder: Path,
  config: EncoderConfig,
  max_steps: int = 0,
) -> list[Corpus]:
  """The corpora with token ids in place of their text.

  Args:
    corpora: with transcripts; those of one run, whose texts are equally long.
    options: `config.text`.
    folder: of the encoder.
    config: of the encoder.
    max_steps: longest text that the run keeps; 0 = no bound of its own.

  Returns:
    Each with a text modality whose `ids` are `tokens` and, as `options.linguistic`
    says, `pos`, `word_polarity` and `sentence_polarity`; its features have width 0,
    and its `context` the `tokens` of neighbours, as `options.context` says.
    `extras["text_words"]` [n t] says which word a token came from (-1 = none). Texts
    are cut to `notes["text"]["max_length"]` tokens; `notes["text"]["unknown"]` is the
    id of [UNK], or None.

  Raises:
    UserError: no transcripts, no annotator, no tokenizer or one of another encoder.
  """
  tokenizer = load_tokenizer(folder)
  annotator = sentilare.load() if options.linguistic else None
  made = [
    {
      name: rows_of(split, tokenizer, config, name)
      for name, split in corpus.splits.items()
    }
    for corpus in corpora
  ]
  _check_vocabulary(made, config, folder)
  limit = _limit(made, options.max_length, config.max_tokens, max_steps)
  note = {"max_length": limit, "unknown": tokenizer.unk_token_id}
  found = [
    _with_rows(corpus, rows, note, config, annotator)
    for corpus, rows in zip(corpora, made, strict=True)
  ]
  return _with_context(found, made, options, tokenizer, config.max_tokens)


def _with_context(corpora, made, options: TextConfig, tokenizer: Any, most: int):
  if not options.has_context:
    return corpora
  template = context.template_of(tokenizer)

  def beside(split: Split, rows: list[Row], name: str):
    # Inside a text, where many tokenizers tell words by the space before them.
    whole = encode(tokenizer, [f" {row.text}" for row in rows])
    contents = [row.content for row in whole]
    lengths = split.modalities["text"].lengths.tolist()
    return context.of_split(split, contents, lengths, options, most, template, name)

  parts = [
    {name: beside(corpus.splits[name], rows, name) for name, (rows, _) in each.items()}
    for corpus, each in zip(corpora, made, strict=True)
  ]
  return [
    context.noted(corpus, options, each)
    for corpus, each in zip(corpora, context.packed(parts), strict=True)
  ]


def _check_vocabulary(made, config: EncoderConfig, folder: Path) -> None:
  """Ids beyond the table would read some other row of it, without a word."""
  rows = (row for each in made for rows, _ in each.values() for row in rows)
  most = max((number for row in rows for number in row.ids), default=0)
  if most >= config.vocabulary:
    raise UserError(
      f"{folder}: its tokenizer gives id {most}, its encoder has {config.vocabulary}"
      " rows; the two do not go together."
    )


def _limit(made, asked: int, most: int, max_steps: int) -> int:
  trained = [each["train"] for each in made if "train" in each]
  counted = trained or [rows for each in made for rows in each.values()]
  longest = max(len(row.ids) for rows, _ in counted for row in rows)
  bounds = [asked or max(longest, 3), most, max_steps or most]
  return min(bounds)


def _with_rows(corpus, made, note, config, annotator) -> Corpus:
  splits, truncated, limit = {}, {}, note["max_length"]
  for name, (rows, _) in made.items():
    cut = [row.cut(limit) for row in rows]
    truncated[name] = sum(row.is_cut for row in cut)  # by the file, or here
    splits[name] = _with_text(corpus.splits[name], cut, config, annotator)
  notes = dict(corpus.notes)
  if "text" in notes.get("unavailable_modalities", ()):
    kept = [name for name in notes["unavailable_modalities"] if name != "text"]
    notes["unavailable_modalities"] = kept
  notes["text"] = {
    "tokens": {name: source for name, (_, source) in made.items()},
    **note,
    "truncated": {name: count for name, count in truncated.items() if count},
    **({"annotator": annotator.name} if annotator else {}),
  }
  if total := sum(truncated.values()):
    logging.warning(
      "%s: %d of %d transcripts are longer than %d tokens and were cut"
      " (config.text.max_length).",
      corpus.name,
      total,
      sum(len(rows) for rows, _ in made.values()),
      limit,
    )
  return dataclasses.replace(corpus, splits=splits, notes=notes)


def _with_text(split: Split, rows: list[Row], config: EncoderConfig, annotator):
  lengths = np.array([0 if row.is_empty else len(row.ids) for row in rows], np.int32)
  steps = max(1, int(lengths.max(initial=0)))
  rows = [
    Row([], [], "") if not length else row
    for row, length in zip(rows, lengths, strict=True)
  ]
  ids = {"tokens": _packed([row.ids for row in rows], steps, config.pad)}
  if annotator is not None:
    inputs = [linguistic(annotator, row) for row in rows]
    for name, empty in sentilare.PADDING.items():
      ids[name] = _packed([each[name] for each in inputs], steps, empty)
  features = np.zeros((len(rows), steps, 0), np.float32)
  modalities = {**split.modalities, "text": Sequences(features, lengths, ids=ids)}
  available = split.available
  if available is not None and "text" not in split.modalities:
    column = modality_order(modalities).index("text")
    available = np.insert(available, column, True, axis=-1)
  return dataclasses.replace(
    split,
    modalities=modalities,
    extras={**split.extras, TEXT_WORDS: _packed(map(words, rows), steps, -1)},
    available=available,
  )


def _packed(rows, steps: int, empty: int) -> np.ndarray:
  rows = list(rows)
  packed = np.full((len(rows), steps), empty, np.int32)
  for row, values in zip(packed, rows, strict=True):
    row[: len(values)] = values
  return packed
