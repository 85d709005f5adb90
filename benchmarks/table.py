"""Markdown of what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any


def _cell(value: Any) -> str:
  if value is None:
    return "-"
  return f"{value:.3g}" if isinstance(value, float) else str(value)


def markdown(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
  """A table; numbers with three digits."""
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _scaled(value: float | None, unit: float | int) -> float | None:
  return None if value is None else value / unit


def _system(figures: Mapping[str, Any]) -> list[list[Any]]:
  rows = [
    ["compile time, s", figures["compile_seconds"]],
    ["step time, ms", figures["step_seconds"] * 1e3],
    ["samples per second", figures["samples_per_second"]],
    ["matrix products per step, GFLOP", figures["matmul_flops"] / 1e9],
    ["XLA's count (loop bodies once), GFLOP", _scaled(figures["xla_flops"], 1e9)],
    ["share of the matmul ceiling", figures["matmul_share"]],
    ["share of the memory ceiling (loop bodies once)", figures["memory_share"]],
    ["program's peak memory, MiB", _scaled(figures["peak_bytes"], 2**20)],
    ["process's peak memory, MiB", figures["process_peak_bytes"] / 2**20],
    ["matmul ceiling, GFLOP/s", figures["matmul_ceiling"] / 1e9],
    ["memory ceiling, GB/s", figures["memory_ceiling"] / 1e9],
  ]
  for name, share in figures["padding"].items():
    rows.append([f"padding of {name} in the batch", share])
  first = None
  for run in figures.get("epochs", ()):
    first = run["epoch_seconds"] if first is None else first
    how = "" if run["seeds"] == 1 else ", at once" if run["at_once"] else ", in turn"
    rows.append(
      [f"epoch with everything, {run['seeds']} seed(s){how}, s", run["epoch_seconds"]]
    )
    if run["seeds"] > 1:
      rows.append(["  in units of the first line", run["epoch_seconds"] / first])
  return rows


def report(figures: Mapping[str, Any]) -> str:
  """All parts of the report that were measured.

  Args:
    figures: contents of the json file.
  """
  machine = figures["machine"]
  described = ", ".join(f"{key}: {value}" for key, value in machine.items())
  parts = [f"Measured on {described}. Medians of {figures['repeats']} repeats."]
  if "system" in figures:
    one = figures["system"]
    parts.append(f"## {one['system']} at {one['shape']}, batch {one['batch']}")
    parts.append(markdown(_system(one), ("figure", "value")))
  if "scaling" in figures:
    keys = ("devices", "step_seconds", "faster")
    parts.append("## Batches split over devices")
    parts.append(markdown([[row[k] for k in keys] for row in figures["scaling"]], keys))
  if "startup" in figures:
    cold, cached = figures["startup"]["cold"], figures["startup"]["cached"]
    parts.append("## Start-up, seconds")
    rows = [[part, cold[part], cached[part]] for part in cold]
    parts.append(markdown(rows, ("part", "nothing compiled", "from the cache")))
  if "dispatch" in figures:
    keys = ("k", "experts", "dense_seconds", "capacity_seconds")
    keys = (*keys, "ratio", "ratio_over_ideal")
    parts.append("## Expert bank, forward and backward")
    rows = [[row[key] for key in keys] for row in figures["dispatch"]]
    parts.append(markdown(rows, keys))
  if "kernels" in figures:
    keys = ("kernel", "seconds", "plain_seconds", "times_as_fast")
    parts.append("## Kernels of the layers and their plain twins")
    parts.append(markdown([[row[k] for k in keys] for row in figures["kernels"]], keys))
  if "against" in figures:
    parts.append(f"## Training steps against PyTorch {figures['against']['torch']}")
    keys = ("seconds", "torch_seconds", "faster")
    rows = [
      [name, *(case[key] for key in keys)]
      for name, case in figures["against"]["cases"].items()
    ]
    parts.append(markdown(rows, ("case", *keys)))
  return "\n\n".join(parts) + "\n"
