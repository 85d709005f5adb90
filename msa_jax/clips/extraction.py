"""Features of many clips: several at once, each kept as soon as it is there."""

import sys
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeRemainingColumn,
)

from msa_jax.clips import parts
from msa_jax.clips import words as words_lib
from msa_jax.clips.decode import Clip
from msa_jax.clips.extractor import Features
from msa_jax.clips.listing import Item
from msa_jax.clips.parts import Part
from msa_jax.clips.recipe import Toolbox
from msa_jax.errors import MachineError, UserError, plain


class Outcome(NamedTuple):
  """What became of a clip: its part, or the reason why there is none."""

  item: Item
  part: Path
  reason: str = ""


def extract(item: Item, tools: Toolbox) -> Part:
  """What is made of one clip.

  Raises:
    UserError: the clip is damaged or too long, or has nothing at all.
  """
  recipe = tools.recipe
  clip = Clip(item.path, max_seconds=recipe.max_seconds)
  words, notes = item.words(), []
  if clip.audio is None and not clip.has_pictures:
    raise UserError("neither a sound nor a video track")
  if words is None and tools.speech is not None and clip.audio is not None:
    words = tools.speech.words(clip.audio)
    if not words:
      notes.append("no speech was recognised")
  if words and not words_lib.is_timed(words):
    words = _timed(words, clip, tools)
  heard = Clip(item.path, tuple(words or ()), recipe.max_seconds)
  if "audio" in clip.__dict__:
    heard.__dict__["audio"] = clip.audio  # decoded once
  # Pictures and sound at once: one clip alone uses two cores too.
  with futures.ThreadPoolExecutor(len(tools.extractors)) as pool:
    made = pool.map(lambda tool: tool.extract(heard), tools.extractors.values())
    features = {
      modality: _checked(modality, found, tools.extractors[modality].about.width)
      for modality, found in zip(tools.extractors, made, strict=True)
    }
  notes += [f"{name}: {each.note}" for name, each in features.items() if each.note]
  if not any(len(found.values) for found in features.values()):
    raise UserError("; ".join(notes) or "nothing in it that an extractor reads")
  return Part(features, list(heard.words), notes, heard.duration)


def _timed(words, clip: Clip, tools: Toolbox):
  if tools.aligner is not None and clip.audio is not None:
    return tools.aligner.align(words, clip.audio)
  return words_lib.spread(words_lib.text_of(words), 0.0, clip.duration)


def _checked(modality: str, found: Features, width: int) -> Features:
  """Holds an extractor, which may be anybody's, to its interface."""
  values = np.asarray(found.values)
  if values.ndim != 2 or values.shape[1] != width:
    shape = list(values.shape)
    raise UserError(f"{modality}: the extractor made {shape}, not [steps, {width}]")
  if not np.isfinite(values).all():
    raise UserError(f"{modality}: the extractor made cells that are not finite")
  if np.shape(found.times) != (len(values), 2):
    raise UserError(f"{modality}: the extractor's times are not [{len(values)}, 2]")
  if found.lost is not None and found.lost.all():
    # Nothing but lost steps: the clip lacks the modality.
    values, times = values[:0], found.times[:0]
    return found._replace(values=values, times=times, lost=None, words=None)
  if found.lost is not None:
    values = np.where(found.lost[:, None], values.dtype.type(0), values)
  return found._replace(values=values)


def extract_all(
  items: Sequence[Item], tools: Toolbox, folder: Path, workers: int
) -> list[Outcome]:
  """What is made of every clip, in their order; what is there is not made again.

  Args:
    items: the clips.
    tools: the extractors.
    folder: of the parts; made if need be.
    workers: clips at once.

  Raises:
    MachineError: a part cannot be written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  about = tools.about()

  def work(item: Item) -> Outcome:
    path = parts.place(folder, item.id)
    if item.reason:
      return Outcome(item, path, item.reason)
    try:
      made_of = parts.key(about, item.mark())
      if not parts.is_made(path, made_of):
        parts.save(extract(item, tools), path, made_of)
    except MachineError:
      raise
    except Exception as error:  # noqa: BLE001  One clip is no reason to lose the others.
      return Outcome(item, path, _reason(error, item))
    return Outcome(item, path)

  pool = futures.ThreadPoolExecutor(max_workers=workers)
  try:
    with _bar(len(items)) as progress:
      made = []
      for outcome in pool.map(work, items):
        made.append(outcome)
        progress.advance(progress.task_ids[0])
    return made
  finally:
    pool.shutdown(wait=True, cancel_futures=True)


def _reason(error: Exception, item: Item) -> str:
  kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
  text = " ".join(str(error).split())[:300] or plain(error)
  return f"{kind}{text}".replace(f"{item.path}: ", "")


def _bar(total: int) -> Progress:
  bar = Progress(
    TextColumn("clips"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
    console=Console(stderr=True),
    disable=not sys.stderr.isatty(),  # nothing into log files and pipes
  )
  bar.add_task("clips", total=total)
  return bar
