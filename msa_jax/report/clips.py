"""A page on predictions of clips: what was said and seen, and what counted.

A word, or a stretch of sound or pictures, counts by how the prediction changes when the
model does not see it: occlusion (Zeiler and Fergus, "Visualizing and Understanding
Convolutional Networks", ECCV 2014). It is hidden as lost steps are, so that no stand-in
for it is made up.
"""

import base64
import dataclasses
import html
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from msa_jax.clips import faces
from msa_jax.clips.decode import Clip
from msa_jax.names import TEXT_WORDS
from msa_jax.report import style
from msa_jax.runs import clip_predictions, prediction_files
from msa_jax.runs.clip_predictions import Predicted
from msa_jax.runs.open import OpenRun
from msa_jax.safe_io import durable
from msa_jax.typing import Corpus, Sequences, Split

_MOST_SPANS = 30  # of one modality
_PICTURES = 8
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; color: #1a1a1a; }
h1, h2 { line-height: 1.2; }
h2 { border-bottom: 1px solid #ccc; padding-bottom: .2rem; margin-top: 2.5rem; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; }
.remark { color: #555; font-size: .85rem; }
.words span { padding: .1rem .15rem; border-radius: .2rem; line-height: 2; }
.value { font-size: 1.4rem; font-weight: 600; }
"""


class Span(NamedTuple):
  """A part of a clip that can be hidden.

  Attributes:
    modality: it is of.
    begin, end: in seconds; -1 = not known.
    steps: [t] of its modality.
  """

  modality: str
  begin: float
  end: float
  steps: Bool[np.ndarray, " t"]


def spans(split: Split, row: int) -> list[Span]:
  """Words of the text, and equal stretches of the other modalities, of one second or
  as long as makes 30 of them."""
  found = []
  for modality, sequences in split.modalities.items():
    length = int(sequences.lengths[row])
    times = split.extras.get(f"{modality}_times")
    if not length or times is None:
      continue
    inside = np.arange(sequences.features.shape[1]) < length
    own = times[row]
    if modality == "text":
      words = split.extras[TEXT_WORDS][row]
      for number in range(int(words.max(initial=-1)) + 1):
        steps = inside & (words == number)
        if steps.any():
          begin, end = own[steps][0].tolist()
          found.append(Span(modality, begin, end, steps))
      continue
    wide = max(1, math.ceil(float(own[inside].max()) / _MOST_SPANS))
    place = (own[:, 0] / wide + 1e-4).astype(int)
    for number in np.unique(place[inside]).tolist():
      steps = inside & (place == number)
      begin, end = own[steps, 0].min(), own[steps, 1].max()
      found.append(Span(modality, float(begin), float(end), steps))
  return found


def contributions(
  opened: OpenRun, corpus: Corpus, row: int, found: list[Span]
) -> dict[str, Float[np.ndarray, " n"]]:
  """What each span adds to each prediction of a clip.

  Args:
    opened: the run.
    corpus: of clips, before any transform.
    row: of the clip in its one split.
    found: its spans.

  Returns:
    Column of numbers -> prediction less the prediction without the span.
  """
  ((key, split),) = corpus.splits.items()
  copies = _copies(split, row, found)
  columns = clip_predictions.columns_of(
    opened, dataclasses.replace(corpus, splits={key: copies})
  )
  return {
    name: np.asarray(values[0] - values[1:])
    for name, values in _numbers(columns).items()
  }


def _numbers(columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Predictions that are numbers, of all seeds together."""
  return {
    name: values
    for name, values in columns.items()
    if isinstance(values, np.ndarray)
    and values.dtype == np.float64
    and "_seed_" not in name
    and not name.startswith("gate")
  }


def _copies(split: Split, row: int, found: list[Span]) -> Split:
  """The clip as it is, and once without each span."""
  n = len(found) + 1
  rows = np.full(n, row)

  def copied(name: str, sequences: Sequences) -> Sequences:
    steps = sequences.features.shape[1]
    lost = np.zeros((n, steps), bool)
    if sequences.lost is not None:
      lost |= sequences.lost[row]
    for place, span in enumerate(found):
      if span.modality == name:
        lost[place + 1] |= span.steps
    return dataclasses.replace(
      sequences,
      features=sequences.features[rows],
      lengths=sequences.lengths[rows],
      lost=lost,
      ids={key: value[rows] for key, value in sequences.ids.items()},
    )

  return Split(
    ids=np.array([f"{place}" for place in range(n)]),
    modalities={name: copied(name, each) for name, each in split.modalities.items()},
    labels={},
    raw_text=None if split.raw_text is None else split.raw_text[rows],
    groups=None,
    extras={name: values[rows] for name, values in split.extras.items()},
  )


def write(predicted: Predicted, path: Path) -> Path:
  """Writes a page on every clip that was predicted; it needs no other file.

  Args:
    predicted: with the clips' files where they were.
    path: of the page.
  """
  (split,) = predicted.corpus.splits.values()
  files = {each.item.id: each.item.path for each in predicted.outcomes}
  sections = [
    _section(predicted, row, files[name]) for row, name in enumerate(split.ids.tolist())
  ]
  wrong = [each for each in predicted.outcomes if each.reason]
  failed = "".join(
    f"<li>{html.escape(each.item.id)}: {html.escape(each.reason)}</li>"
    for each in wrong
  )
  text = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    f"<title>Predictions of clips</title><style>{_STYLE}</style></head>\n<body>"
    "<h1>Predictions of clips</h1>"
    + (f"<p>Clips that could not be read:</p><ul>{failed}</ul>" if failed else "")
    + "\n".join(sections)
    + "</body></html>\n"
  )
  with durable.replacing(path.expanduser()) as partial:
    partial.write_text(text, encoding="utf-8", errors="replace")
  return path


def _section(predicted: Predicted, row: int, file: Path) -> str:
  (split,) = predicted.corpus.splits.values()
  found = spans(split, row)
  effects = contributions(predicted.opened, predicted.corpus, row, found)
  name = next(iter(effects))
  columns = predicted.columns
  noted = predicted.corpus.notes["clips"]["noted"].get(split.ids[row], [])
  lines = [
    f"<h2>{html.escape(str(split.ids[row]))}</h2>",
    _values(columns, row),
    *(f'<p class="remark">{html.escape(line)}</p>' for line in noted),
    _words(split, row, found, effects[name]),
  ]
  with style.look():
    lines.append(_image(_drawing(split, row, file, found, effects[name], name)))
  lines.append(
    f'<p class="remark">What a word or a stretch adds to {html.escape(name)}: the'
    " prediction less that without it. The model sees the rest as it is; what two"
    " stretches say twice counts for neither.</p>"
  )
  return "\n".join(lines)


def _values(columns: prediction_files.Columns, row: int) -> str:
  lines = []
  for name, values in columns.items():
    if name in ("id", "split") or "_seed_" in name:
      continue
    value = values[row]
    seeds = [columns[key][row] for key in columns if key.startswith(f"{name}_seed_")]
    shown = f"{value:.3f}" if isinstance(value, float) else str(value)
    if len(seeds) > 1:
      shown += f" (seeds: {min(seeds):.3f} to {max(seeds):.3f})"
    kind = "value" if not lines else ""
    lines.append(f'<span class="{kind}">{html.escape(f"{name}: {shown}")}</span>')
  return f"<p>{'<br>'.join(lines)}</p>"


def _words(split: Split, row: int, found: list[Span], effect) -> str:
  if split.raw_text is None or not split.raw_text[row]:
    return '<p class="remark">no transcript</p>'
  said = str(split.raw_text[row]).split(" ")
  amounts = np.zeros(len(said))
  numbers = split.extras[TEXT_WORDS][row] if TEXT_WORDS in split.extras else None
  for span, value in zip(found, effect, strict=True):
    if span.modality == "text" and numbers is not None:
      amounts[int(numbers[span.steps][0])] = value
  most = max(float(np.abs(effect).max(initial=0.0)), 1e-9)
  made = []
  for word, amount in zip(said, amounts.tolist(), strict=True):
    colour = "0, 114, 178" if amount > 0 else "213, 94, 0"
    tint = f"rgba({colour}, {0.6 * abs(amount) / most:.2f})"
    title = f"{amount:+.3f}"
    made.append(
      f'<span style="background: {tint}" title="{title}">{html.escape(word)}</span>'
    )
  return f'<p class="words">{" ".join(made)}</p>'


def _drawing(split: Split, row: int, file: Path, found, effect, name: str) -> Figure:
  heard = [
    m for m in split.modalities if m != "text" and split.modalities[m].lengths[row]
  ]
  pictures = _pictures(split, row, file)
  height = (1.2 if pictures else 0.2) + 1.2 * max(1, len(heard))
  figure = Figure(figsize=(8.0, height))
  ratios = [1.2 if pictures else 0.2, *[1.2] * max(1, len(heard))]
  rows = figure.add_gridspec(len(ratios), 1, height_ratios=ratios)
  if pictures:
    strip = rows[0].subgridspec(1, _PICTURES, wspace=0.05)
    for place, (time, pixels, box) in enumerate(pictures):
      axes = figure.add_subplot(strip[place])
      axes.imshow(pixels)
      if box is not None:
        axes.plot(*box, color=style.colour(4), linewidth=1.2)
      axes.set_title(f"{time:.1f} s", fontsize=7)
      axes.set_axis_off()
  bound = max(float(np.abs(effect).max(initial=0.0)), 1e-9) * 1.1
  for place, modality in enumerate(heard):
    axes = figure.add_subplot(rows[place + 1])
    chosen = [i for i, span in enumerate(found) if span.modality == modality]
    begins = [found[i].begin for i in chosen]
    widths = [0.95 * (found[i].end - found[i].begin) for i in chosen]
    colours = [style.colour(0 if effect[i] > 0 else 1) for i in chosen]
    axes.bar(begins, effect[chosen], widths, align="edge", color=colours)
    axes.axhline(0.0, color="0.5", linewidth=0.6)
    axes.set_ylim(-bound, bound)
    axes.set_title(f"{modality}, adds to {name}")
  if heard:
    figure.axes[-1].set_xlabel("seconds")
  return figure


def _pictures(split: Split, row: int, file: Path) -> list[tuple[float, Any, Any]]:
  """Some pictures of the clip, and the box of the face that is followed."""
  times = split.extras.get("vision_times")
  if times is None or not split.modalities["vision"].lengths[row]:
    return []
  vision = split.modalities["vision"]
  length = int(vision.lengths[row])
  steps = np.unique(np.linspace(0, length - 1, _PICTURES).round().astype(int)).tolist()
  wanted, shown = [float(times[row, step, 0]) for step in steps], []
  boxed = vision.features.shape[-1] == len(faces.COLUMNS)
  for time, pixels in Clip(file).frames(1000.0):
    if len(shown) < len(wanted) and time + 1e-3 >= wanted[len(shown)]:
      step = steps[len(shown)]
      lost = vision.lost is not None and bool(vision.lost[row, step])
      cells = vision.features[row, step, :4] if boxed and not lost else None
      shown.append((time, pixels, _box(cells, pixels)))
  return shown


def _box(cells: Any, pixels: Any) -> tuple[Any, Any] | None:
  if cells is None:
    return None
  height, width = pixels.shape[:2]
  x, y, w, h = np.asarray(cells, float) * [width, height, width, height]
  across = np.array([-0.5, 0.5, 0.5, -0.5, -0.5]) * w + x
  down = np.array([-0.5, -0.5, 0.5, 0.5, -0.5]) * h + y
  return across, down


def _image(figure: Figure) -> str:
  stream = io.BytesIO()
  figure.savefig(stream, dpi=110, format="png")
  data = base64.b64encode(stream.getvalue()).decode()
  return f'<figure><img alt="the clip" src="data:image/png;base64,{data}"></figure>'
