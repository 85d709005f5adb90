"""Progress of a run: a bar on a terminal, a line per seed elsewhere."""

import sys
from typing import TextIO

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
  """Shows steps, loss, validation figure, gate entropy and time left.

  Attributes:
    total: steps of the seed.
  """

  def __init__(self, title: str, total: int, done: int, file: TextIO | None = None):
    stream = sys.stderr if file is None else file
    self.total = total
    self._bar = Progress(
      TextColumn("{task.description}"),
      BarColumn(),
      TextColumn("{task.fields[figures]}"),
      TimeElapsedColumn(),
      TextColumn("left"),
      TimeRemainingColumn(),
      console=Console(file=stream),
      # Nothing at all is drawn into log files and pipes.
      disable=not (stream.isatty() and processes.is_primary()),
    )
    self._task = self._bar.add_task(title, total=total, completed=done, figures="")

  def __enter__(self):
    self._bar.start()
    return self

  def __exit__(self, *_):
    self._bar.stop()

  def update(self, done: int, figures: dict[str, float]) -> None:
    """Moves the bar to `done` steps and shows `figures` (name -> value)."""
    text = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
    self._bar.update(self._task, completed=done, figures=text)
