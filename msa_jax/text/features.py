"""Text features: the last states of a pretrained encoder that is not trained, made
once and kept on disk."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int

from msa_jax.config.options import TextConfig
from msa_jax.errors import UserError
from msa_jax.names import TEXT_CONTEXT, TEXT_TOKENS
from msa_jax.safe_io import archives
from msa_jax.safe_io.hashing import sha256
from msa_jax.text import context, tokens, weights
from msa_jax.text.bert import EncoderConfig, TextEncoder
from msa_jax.typing import Corpus, Sequences, Split

Encode = Callable[[Sequences], Float[np.ndarray, "n t d"]]

_FORMAT = "text features 1"  # part of what names a cached file
_ROWS = 32
# Lengths that programs are made for; texts are padded to the next.
_LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def with_text(
  corpora: Sequence[Corpus], options: TextConfig, max_steps: int = 0
) -> list[Corpus]:
  """The corpora with their text as `config.text` wants it.

  Args:
    corpora: with transcripts.
    options: `config.text`, with an encoder.
    max_steps: longest text that the run keeps; 0 = no bound of its own.

  Returns:
    Corpora whose text has token ids if the encoder is to be trained (see
    `tokens.tokenise`), and features otherwise: the last states, float16, with the ids
    they were made of in `extras["text_tokens"]` [n t] (and `extras["text_context"]`
    [n s], those of neighbours).

  Raises:
    UserError: no such encoder, no transcripts, a tokenizer or annotator lacks.
  """
  folder = weights.locate(options.encoder)
  config = weights.read_config(folder)
  made = tokens.tokenise(corpora, options, folder, config, max_steps)
  source = weights.source(folder)
  digest = sha256(source)
  note = {"encoder": {"file": source.name, "sha256": digest}}
  made = [_noted(corpus, note) for corpus in made]
  if options.is_tuned:
    return made
  encode = _encode(folder, config, digest, options.cache)

  def features(split: Split) -> Split:
    text = split.modalities["text"]
    return dataclasses.replace(
      split,
      modalities={
        **split.modalities,
        "text": Sequences(encode(text), text.lengths),
      },
      extras={**split.extras, **_read(text)},
    )

  return [
    dataclasses.replace(
      corpus, splits={name: features(split) for name, split in corpus.splits.items()}
    )
    for corpus in made
  ]


def _read(text: Sequences) -> dict[str, np.ndarray]:
  """Extras that tell what features were made of."""
  tokens_read = {TEXT_TOKENS: text.ids["tokens"]}
  if text.context:
    tokens_read[TEXT_CONTEXT] = text.context["tokens"]
  return tokens_read


def encoder_of(options: TextConfig) -> Encode | None:
  """What encodes tokens again, some of them lost; for `data.missing`.

  Args:
    options: `config.text`.

  Returns:
    Text with `ids["tokens"]` -> features [n t d] of the frozen encoder, as `with_text`
    makes them, kept on disk likewise. Steps in `lost` are attended to by none; their
    own features are of no meaning. None where no frozen encoder makes the run's text.
  """
  if not options.is_encoded or options.is_tuned:
    return None

  @functools.cache
  def found() -> Encode:
    folder = weights.locate(options.encoder)
    digest = sha256(weights.source(folder))
    return _encode(folder, weights.read_config(folder), digest, options.cache)

  return lambda text: found()(text)


def _encode(folder: Path, config: EncoderConfig, digest: str, cache: str) -> Encode:
  """Text with token ids -> features [n t d]; the encoder is loaded when needed."""
  encoder = functools.cache(functools.partial(_encoder, folder))
  made_by, kept = f"{_FORMAT} {digest} {config}", cache_folder(cache)

  def encode(text: Sequences) -> Float[np.ndarray, "n t d"]:
    flat = _cached(text, made_by, kept, config.width, lambda: encoder()(text))
    return _padded(flat, text.lengths, text.features.shape[1])

  return encode


def frozen_means(text: Sequences, options: TextConfig) -> Float[np.ndarray, "n d"]:
  """Mean of the last states of each sample's tokens that are not lost, by the encoder
  as it is before any training; zero where there is none.

  Args:
    text: with `ids["tokens"]`.
    options: `config.text`, with an encoder. States are kept in its cache.

  Raises:
    UserError: no such encoder.
  """
  folder = weights.locate(options.encoder)
  config = weights.read_config(folder)
  made_by = f"{_FORMAT} {sha256(weights.source(folder))} {config}"
  cache = cache_folder(options.cache)
  flat = _cached(text, made_by, cache, config.width, lambda: _encoder(folder)(text))
  steps = np.arange(text.ids["tokens"].shape[1])[None]
  real = steps < text.lengths[:, None]  # [n t]
  seen = real if text.lost is None else real & ~text.lost
  owner = np.nonzero(real)[0][seen[real]]
  total = np.zeros((len(text.lengths), config.width))
  np.add.at(total, owner, flat[seen[real]].astype(np.float64))
  return (total / np.maximum(seen.sum(axis=1), 1)[:, None]).astype(np.float32)


def _noted(corpus: Corpus, note: dict[str, Any]) -> Corpus:
  notes = {**corpus.notes, "text": {**corpus.notes["text"], **note}}
  return dataclasses.replace(corpus, notes=notes)


def cache_folder(name: str = "") -> Path:
  """Where features are kept: a named folder, or one in the user's cache folder."""
  if name:
    return Path(name).expanduser()
  root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(root) / "msa_jax" / "text"


def _encoder(folder: Path) -> Callable[[Sequences], Float[np.ndarray, "n d"]]:
  found = weights.load(str(folder))
  return functools.partial(last_states, found.config, jax.device_put(found.params))


def last_states(
  config: EncoderConfig, params: Any, text: Sequences, rows: int = _ROWS
) -> Float[np.ndarray, "n d"]:
  """Last hidden states of all tokens, one sample after the other.

  Args:
    config: of the encoder.
    params: of a `TextEncoder` of which all layers are one stack.
    text: with `ids["tokens"]`, and `context["tokens"]` where neighbours are read too;
      nobody attends to steps in `lost`.
    rows: samples in a batch.

  Returns:
    float16 [n d], n = sum of the lengths: the texts' own tokens. Computed in
    float32, in batches of samples of about one length, by one program for each of a few
    lengths.
  """
  run = _program(config)
  lengths = text.lengths
  ids, seen, totals = _beside(text, config.max_tokens)
  ends = np.cumsum(lengths)
  flat = np.zeros((int(lengths.sum()), config.width), np.float16)
  order = np.argsort(totals, kind="stable")
  order = order[lengths[order] > 0]
  # By their padded length, so that one batch needs one program.
  padded = np.array([_static(int(n), config.max_tokens) for n in totals[order]], int)
  for steps in sorted(set(padded.tolist())):
    members = order[padded == steps]
    for start in range(0, len(members), rows):
      chosen = members[start : start + rows]
      made = (ids[chosen], seen[chosen], totals[chosen])
      given = _batch(*made, rows, steps, config.pad)
      own = np.zeros((rows, 1), np.int32)
      own[: len(chosen), 0] = lengths[chosen]
      types = (np.arange(steps)[None] >= own) & np.asarray(given[1])
      states = run(params, *given, (types & (config.types > 1)).astype(np.int32))
      states = np.asarray(states[: len(chosen)], np.float16)
      for row, found in zip(chosen, states, strict=True):
        flat[ends[row] - lengths[row] : ends[row]] = found[: lengths[row]]
  return flat


def _beside(
  text: Sequences, most: int
) -> tuple[Int[np.ndarray, "n t"], Bool[np.ndarray, "n t"], Int[np.ndarray, " n"]]:
  """Ids of every text with those of its context after them, which of them can be
  seen, and their numbers."""
  ids, lengths = text.ids["tokens"], text.lengths
  seen = np.arange(ids.shape[1])[None] < lengths[:, None]
  seen = seen if text.lost is None else seen & ~text.lost
  if not text.context:
    return ids, seen, lengths
  beside = text.context["tokens"]
  place = np.asarray(context.place(ids, lengths, beside, most)[0])

  def joined(own, other):
    return np.take_along_axis(np.concatenate([own, other], axis=1), place, axis=1)

  totals = lengths + (beside >= 0).sum(axis=1)
  return joined(ids, beside), joined(seen, beside >= 0), totals


@functools.cache
def _program(config: EncoderConfig) -> Callable[..., Any]:
  """One for all calls: texts that lose words are encoded many times."""

  @jax.jit
  def run(params, ids, mask, types):
    with jax.default_matmul_precision("highest"):
      return TextEncoder(config).apply({"params": params}, ids, mask, types)[-1]

  return run


def _static(length: int, most: int) -> int:
  return min([n for n in _LENGTHS if n >= length] or [most], default=most)


def _batch(
  ids: Int[np.ndarray, "n t"],
  seen: Bool[np.ndarray, "n t"],
  lengths: Int[np.ndarray, " n"],
  rows: int,
  steps: int,
  pad: int,
):
  """Ids and mask [rows steps]. Another id than that of padding stands where a step is
  not seen, for RoBERTa counts its positions over all but padding."""
  batch, mask = np.full((rows, steps), pad, np.int32), np.zeros((rows, steps), bool)
  n, kept = len(ids), min(steps, ids.shape[1])
  real = np.arange(kept)[None] < lengths[:, None]
  hidden = np.where(real, 1 if pad == 0 else 0, pad)
  batch[:n, :kept] = np.where(seen[:, :kept], ids[:, :kept], hidden)
  mask[:n, :kept] = seen[:, :kept]
  return jnp.asarray(batch), jnp.asarray(mask)


def _padded(
  flat: Float[np.ndarray, "n d"], lengths: Int[np.ndarray, " b"], steps: int
) -> Float[np.ndarray, "b t d"]:
  features = np.zeros((len(lengths), steps, flat.shape[-1]), flat.dtype)
  features[np.arange(steps)[None] < lengths[:, None]] = flat
  return features


def _cached(
  text: Sequences, made_by: str, folder: Path, width: int, make: Callable
) -> Float[np.ndarray, "n d"]:
  """What `make` gives, kept in a file named by all that it depends on."""
  name = hashlib.sha256(made_by.encode())
  name.update(np.ascontiguousarray(text.ids["tokens"]).tobytes())
  name.update(str(text.ids["tokens"].shape).encode())
  name.update(np.ascontiguousarray(text.lengths).tobytes())
  if text.lost is not None and text.lost.any():
    name.update(np.packbits(text.lost).tobytes())
  for beside in text.context.values():
    name.update(f"context {beside.shape}".encode() + beside.tobytes())
  path = folder / f"{name.hexdigest()}.npy"
  try:
    found = archives.read_npy(path)
    if found.shape == (int(text.lengths.sum()), width) and found.dtype == np.float16:
      return found
  except UserError:
    pass  # Not there, or cut off: made again.
  made = make()
  # Another process may be writing the same: each its own file, the last one stays.
  part = path.with_suffix(f".{os.getpid()}.part")
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with part.open("wb") as stream:
      np.save(stream, made)
    part.replace(path)
  except OSError as error:
    logging.warning("text features are not kept: %s (config.text.cache).", error)
  return made
