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
from jaxtyping import Float, Int

from msa_jax.config.options import TextConfig
from msa_jax.errors import UserError
from msa_jax.safe_io import archives
from msa_jax.safe_io.hashing import sha256
from msa_jax.text import context, tokens, weights
from msa_jax.text.bert import EncoderConfig, TextEncoder
from msa_jax.typing import Corpus, Sequences, Split

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
    `tokens.tokenise`), and features otherwise: the last states, float16.

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
  encoded = functools.cache(functools.partial(_encoder, folder))
  made_by = f"{_FORMAT} {digest} {config}"
  cache = cache_folder(options.cache)

  def features(split: Split) -> Split:
    text = split.modalities["text"]
    flat = _cached(text, made_by, cache, config.width, lambda: encoded()(text))
    text = Sequences(_padded(flat, text.lengths), text.lengths)
    return dataclasses.replace(split, modalities={**split.modalities, "text": text})

  return [
    dataclasses.replace(
      corpus, splits={name: features(split) for name, split in corpus.splits.items()}
    )
    for corpus in made
  ]


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
  config: EncoderConfig, params: Any, text: Sequences
) -> Float[np.ndarray, "n d"]:
  """Last hidden states of all tokens, one sample after the other.

  Args:
    config: of the encoder.
    params: of a `TextEncoder` of which all layers are one stack.
    text: with `ids["tokens"]`, and `context["tokens"]` where neighbours are read too.

  Returns:
    float16 [n d], n = sum of the lengths: the texts' own tokens. Computed in
    float32, in batches of samples of about one length, by one program for each of a few
    lengths.
  """

  @jax.jit
  def run(params, ids, mask, types):
    with jax.default_matmul_precision("highest"):
      return TextEncoder(config).apply({"params": params}, ids, mask, types)[-1]

  lengths = text.lengths
  ids, totals = _beside(text, config.max_tokens)
  ends = np.cumsum(lengths)
  flat = np.zeros((int(lengths.sum()), config.width), np.float16)
  order = np.argsort(totals, kind="stable")
  order = order[lengths[order] > 0]
  # By their padded length, so that one batch needs one program.
  padded = np.array([_static(int(n), config.max_tokens) for n in totals[order]], int)
  for steps in sorted(set(padded.tolist())):
    members = order[padded == steps]
    for start in range(0, len(members), _ROWS):
      rows = members[start : start + _ROWS]
      batch, mask = _batch(ids, totals, rows, steps, config.pad)
      own = np.zeros((_ROWS, 1), np.int32)
      own[: len(rows), 0] = lengths[rows]
      types = (np.arange(steps)[None] >= own) & mask & (config.types > 1)
      states = run(params, batch, mask, types.astype(np.int32))
      states = np.asarray(states[: len(rows)], np.float16)
      for row, found in zip(rows, states, strict=True):
        flat[ends[row] - lengths[row] : ends[row]] = found[: lengths[row]]
  return flat


def _beside(
  text: Sequences, most: int
) -> tuple[Int[np.ndarray, "n t"], Int[np.ndarray, " n"]]:
  """Ids of every text with those of its context after them, and their numbers."""
  ids, lengths = text.ids["tokens"], text.lengths
  if not text.context:
    return ids, lengths
  beside = text.context["tokens"]
  place, _, _ = context.place(ids, lengths, beside, most)
  whole = np.take_along_axis(np.concatenate([ids, beside], 1), np.asarray(place), 1)
  return whole, lengths + (beside >= 0).sum(axis=1)


def _static(length: int, most: int) -> int:
  return min([n for n in _LENGTHS if n >= length] or [most], default=most)


def _batch(
  ids: Int[np.ndarray, "n t"], lengths: np.ndarray, rows: np.ndarray, steps: int, pad
):
  batch = np.full((_ROWS, steps), pad, np.int32)
  kept = min(steps, ids.shape[1])
  batch[: len(rows), :kept] = ids[rows, :kept]
  mask = np.zeros((_ROWS, steps), bool)
  mask[: len(rows)] = np.arange(steps)[None] < lengths[rows][:, None]
  return jnp.asarray(np.where(mask, batch, pad)), jnp.asarray(mask)


def _padded(
  flat: Float[np.ndarray, "n d"], lengths: Int[np.ndarray, " b"]
) -> Float[np.ndarray, "b t d"]:
  steps = max(1, int(lengths.max(initial=0)))
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
