"""Progress of a training: a bar on a terminal, a line per epoch elsewhere."""

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.progress import (
  BarColumn,
  Progress,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)

from msa_jax.devices import processes


class TrainingProgress:
  """Shows steps, loss, validation figure, gate entropy and time.

  Log files and pipes get a line at the start and one per epoch.

  Attributes:
    total: steps of the seed.
    epochs: most epochs of the seed.
  """

  def __init__(self, title: str, total: int, done: int, epochs: int):
    self.total, self.epochs = total, epochs
    self._title, self._stream = title, sys.stderr
    draws = self._stream.isatty()
    self._writes = processes.is_primary() and not draws
    self._bar = Progress(
      TextColumn("{task.description}"),
      BarColumn(),
      TextColumn("{task.fields[figures]}"),
      TimeElapsedColumn(),
      TextColumn("left"),
      TimeRemainingColumn(),
      console=Console(file=self._stream),
      disable=not (processes.is_primary() and draws),
    )
    self._task = self._bar.add_task(
      title, total=total, completed=done, figures="compiling"
    )
    self._line(f"{title}: step {done} of {total}, compiling")

  def __enter__(self):
    self._bar.start()
    return self

  def __exit__(self, kind, *_):
    if kind is None:  # a training that ended early has nothing left
      self._bar.update(self._task, total=self.total, completed=self.total)
    self._bar.stop()

  def update(self, done: int, figures: Mapping[str, float]) -> None:
    """Moves the bar to `done` steps and shows `figures` (name -> value)."""
    self._bar.update(self._task, completed=done, figures=_shown(figures))

  def end_epoch(self, epoch: int, figures: Mapping[str, float], seconds: float) -> None:
    """Writes the line of an epoch.

    Args:
      epoch: its number, from 1.
      figures: name -> value.
      seconds: of training so far.
    """
    self._line(
      f"{self._title}: epoch {epoch} of {self.epochs}  {_shown(figures)}"
      f"  {seconds:.0f} s"
    )

  def _line(self, text: str) -> None:
    if self._writes:
      print(text, file=self._stream, flush=True)


def _shown(figures: Mapping[str, float]) -> str:
  return "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
