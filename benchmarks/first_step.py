"""What a new process spends until its first optimizer step; a script of its own.

`python -m benchmarks.first_step CONFIG.json SHAPE ROWS` prints one JSON object of
seconds.
"""

import json
import pathlib
import sys
import time


class _Laps:
  """Seconds between calls."""

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self._last = time.perf_counter()

  def end(self, name: str) -> None:
    now = time.perf_counter()
    self.seconds[name] = now - self._last
    self._last = now


def main(path: str, shape: str, rows: str) -> None:
  """Goes the way of `runs.run` and stops after a step."""
  laps = _Laps()
  import jax

  laps.end("import_jax")
  from benchmarks import shapes
  from msa_jax.config.experiment import from_json
  from msa_jax.devices import compilation
  from msa_jax.runs import prepare, run
  from msa_jax.training.compiled_stages import CompiledStages

  compilation.configure_process()
  laps.end("import_training")
  config = from_json(pathlib.Path(path).read_text())
  prepared = prepare.prepare(shapes.apply(config, shape, int(rows)))
  feed = run.feeds_of(prepared.config, prepared.corpus)["train"]
  jax.block_until_ready(feed.resident)
  laps.end("data")
  programs = CompiledStages(prepared.config)
  seed = 0
  state, _ = jax.block_until_ready(programs.begin([seed]))
  laps.end("init")
  order = feed.order(seed, 0, prepared.config.optim.batch_size)[:1]
  jax.block_until_ready(programs.advance(0, state, feed, [order], 0, [seed], [True]))
  laps.end("step")
  print(json.dumps(laps.seconds))


if __name__ == "__main__":
  main(*sys.argv[1:])
