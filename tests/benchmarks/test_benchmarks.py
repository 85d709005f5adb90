"""The benchmark: what it counts, what it reports, what it refuses."""

import dataclasses
import json
import pathlib
import stat
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from jax.experimental.compilation_cache import compilation_cache
from paths import ROOT

from benchmarks import (
  compare_torch,
  dispatch,
  first_step,
  kernels,
  measure,
  shapes,
  subprocesses,
  systems,
  table,
  torch_steps,
)
from msa_jax import models
from msa_jax.data.synthetic.generator import TINY
from msa_jax.devices import compilation
from msa_jax.errors import UserError
from msa_jax.step import compose
from msa_jax.training.run_directory import RunDirectory


def test_the_median_of_timings_is_that_of_calls_after_the_first():
  calls = []
  seconds = measure.median_seconds(lambda: calls.append(1), repeats=3, inner=2)
  assert len(calls) == 1 + 3 * 2
  assert 0 < seconds < 0.1


@pytest.mark.parametrize("k", [1, 2, 8])
def test_even_routing_gives_every_expert_the_same_number_of_rows(k):
  routing = dispatch.even_routing(rows=16, experts=8, k=k)
  np.testing.assert_allclose(routing.combine.sum(axis=1), 1.0)
  np.testing.assert_array_equal((routing.combine > 0).sum(axis=0), 16 * k // 8)


@pytest.mark.slow
def test_every_kernel_is_timed_against_a_twin_that_gives_the_same():
  sizes = {"rows": 2, "steps": 6, "width": 8}
  figures = kernels.kernels(repeats=1, **sizes)
  cases = kernels.cases(**sizes)
  assert [row["kernel"] for row in figures] == list(cases)
  machine = {"machine": {"cores": 1}, "repeats": 1}
  assert "| selection | " in table.report({**machine, "kernels": figures})
  # Another generator drops other entries.
  del cases["dropout against jax.random"]
  for name, case in cases.items():
    ours, plain = case.kernel(*case.arguments), case.plain(*case.arguments)
    np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_shape_replaces_the_corpus_and_refuses_unknown_names():
  config = shapes.apply(toy.config(), "mosei", rows=100)
  assert config.data.synthetic.sizes == (100, 100, 100)
  assert config.data.synthetic.widths == (768, 74, 35)
  assert (config.data.align, config.data.max_steps) == ("pool", 50)
  with pytest.raises(UserError, match="--shape='moon' must be one of mosi"):
    shapes.apply(toy.config(), "moon")
  with pytest.raises(UserError, match="--rows=-1"):
    shapes.apply(toy.config(), "mosi", -1)


def _left(lines):
  """In place of `run.train`: a run that left these lines."""

  def train(config, folder):
    run = RunDirectory(folder)
    run.create(config, {})
    run.path.joinpath("metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))

  return train


def test_programs_are_compiled_anew_where_that_is_measured(tmp_path):
  function = jax.jit(lambda a: a * 3 + 1)
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  compilation_cache.reset_cache()
  try:
    compiled = measure.uncached(function.lower(1.0).compile)
    assert float(compiled(1.0)) == 4.0
    assert not list(tmp_path.iterdir())
    jax.block_until_ready(jax.jit(lambda a: a * 5 - 1)(1.0))  # as usual afterwards
    assert list(tmp_path.iterdir())
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def test_a_repeated_step_goes_on_from_its_own_state():
  step = jax.jit(lambda state, by: (state + by, state), donate_argnums=0)
  start = jnp.asarray(1.0)
  call = measure.repeated(step, start, 2.0)
  assert [float(call()) for _ in range(3)] == [1.0, 3.0, 5.0]
  assert float(start) == 1.0


@pytest.fixture
def tiny(monkeypatch):
  monkeypatch.setitem(models.SYSTEMS, "toy", toy.SYSTEM)
  shape = shapes.Shape(dataclasses.replace(TINY, lost=(0.0,) * 3), "none", 0)
  monkeypatch.setattr(shapes, "SHAPES", {"tiny": shape})


def test_a_system_is_measured_and_reported(tiny, monkeypatch):
  figures = systems.system(toy.config(), "tiny", rows=0, repeats=2)
  # Forward 2bdk and backward of the weights alone, for two linear layers.
  width = sum(TINY.widths)
  forward = 2 * 8 * width * (1 + 3)
  assert forward < figures["matmul_flops"] <= 3 * forward
  assert figures["compile_seconds"] > 0
  assert figures["samples_per_second"] * figures["step_seconds"] == pytest.approx(8)
  assert figures["peak_bytes"] > 8 * width * 4
  assert 0 < figures["matmul_share"] < 1
  runs = [systems.epochs(toy.config(), "tiny", 0, (0,), count=2)]
  assert runs[0]["seeds"] == 1 and runs[0]["epoch_seconds"] > 0
  lines = [
    {"seed": s, "epoch": e, "seconds": e * (s + 2)} for s in (0, 1) for e in (1, 2)
  ]
  for mode, expected in (("vmap", 3), ("sequential", 2 + 3)):
    config = toy.config().replace("replicas", mode=mode)
    with monkeypatch.context() as patch:
      patch.setattr(systems.run, "train", _left(lines))
      both = systems.epochs(config, "tiny", 0, (0, 1), count=2)
    assert both["epoch_seconds"] == expected
    runs.append(both)
  report = {"machine": measure.machine(), "repeats": 2}
  text = table.report(report | {"system": figures | {"epochs": runs}})
  assert jax.devices()[0].device_kind in text
  assert f"| step time, ms | {figures['step_seconds'] * 1e3:.3g} |" in text
  json.dumps(figures)


def test_a_step_is_timed_over_devices(tiny):
  for devices in (1, 4):
    assert systems.step_seconds(toy.config(), "tiny", 0, devices, repeats=2) > 0
  with pytest.raises(UserError, match=r"data=3"):
    systems.step_seconds(toy.config(), "tiny", 0, 3, repeats=2)


def _children(monkeypatch, answers):
  """In place of new processes: answers[k](arguments, environment) is what the k-th
  prints, or its error; returns the scripts' names."""
  called = []

  def child(command, env, **options):
    name = command[2].removeprefix("benchmarks.")
    answer = answers[len(called)](command[3:], env)
    called.append(name)
    failed = isinstance(answer, str)
    said = "" if failed else "noise\n" + json.dumps(answer)
    error = f"Traceback\n{answer}\n" if failed else ""
    return subprocess.CompletedProcess(command, int(failed), said, error)

  monkeypatch.setattr(subprocess, "run", child)
  return called


def test_every_number_of_devices_has_a_process(monkeypatch):
  called = _children(
    monkeypatch,
    [
      lambda arguments, _: {"1": 3.0}[arguments[3]],
      lambda arguments, _: {"2": 2.0}[arguments[3]],
      lambda *_: "UserError: not that many",
    ],
  )
  figures = subprocesses.scaling(toy.config(), "tiny", 0, (1, 2), repeats=2)
  assert called == ["multi_device"] * 2
  assert [row["devices"] for row in figures] == [1, 2]
  assert [row["faster"] for row in figures] == [1.0, 1.5]
  text = table.report({"machine": {}, "repeats": 2, "scaling": figures})
  assert "| 2 | 2 | 1.5 |" in text
  with pytest.raises(UserError, match="multi_device tiny 0 9 2: UserError: not that"):
    subprocesses.scaling(toy.config(), "tiny", 0, (9,), repeats=2)


def test_the_start_of_a_process_is_timed_to_its_first_step(tiny, monkeypatch, capsys):
  monkeypatch.setattr(
    compilation, "configure_process", lambda: None
  )  # of the tests' process
  parts = ["import_jax", "import_training", "data", "init", "step"]

  def cold(arguments, environment):
    assert "JAX_COMPILATION_CACHE_DIR" not in environment
    assert pathlib.Path(environment["XDG_CACHE_HOME"]).is_dir()
    first_step.main(*arguments)
    return json.loads(capsys.readouterr().out)

  def cached(seconds):
    return lambda *_: dict.fromkeys(parts, seconds)

  called = _children(monkeypatch, [cold, cached(1.0), cached(9.0), cached(2.0)])
  figures = subprocesses.startup(toy.config(), "tiny", 0, repeats=3)
  assert called == ["first_step"] * 4
  assert list(figures["cold"]) == parts
  assert all(seconds > 0 for seconds in figures["cold"].values())
  assert figures["cached"] == dict.fromkeys(parts, 2.0)  # the median
  text = table.report({"machine": {}, "repeats": 3, "startup": figures})
  assert f"| step | {figures['cold']['step']:.3g} | 2 |" in text


def test_the_compared_systems_have_the_parameters_of_their_torch_twins():
  config = compare_torch.config_of("lf_dnn")
  state = jax.eval_shape(compose.build(config).init, 0)
  count = sum(leaf.size for leaf in jax.tree.leaves(state.params))

  def linear(*widths):
    return sum((a + 1) * b for a, b in zip(widths[:-1], widths[1:], strict=True))

  lstm = 4 * 128 * (768 + 128 + 1)  # torch's second bias is not a second parameter
  audio = 2 * 5 + linear(5, 16, 16, 16)
  vision = 2 * 20 + linear(20, 128, 128, 128)
  head = linear(256 + 16 + 128, 128, 128, 1)
  assert count == lstm + linear(128, 256) + audio + vision + head


def test_a_compared_case_trains_on(monkeypatch):
  small = {"batch": 2, "steps": 5, "layers": 1, "heads": 2, "ffn": 8}
  monkeypatch.setitem(torch_steps.CASES, "encoder", small)
  monkeypatch.setattr(torch_steps, "VOCABULARY", 11)
  monkeypatch.setattr(torch_steps, "ENCODER_WIDTH", 8)
  further = compare_torch.training("encoder")
  first = further()
  assert np.isfinite(first) and further() != first


def test_the_comparison_divides_their_time_by_ours(monkeypatch, tmp_path):
  script = tmp_path / "python"
  said = json.dumps({"version": "9.9", "seconds": {"lstm": 3.0}})
  script.write_text(f"#!/bin/sh\necho noise\necho '{said}'\n")
  script.chmod(script.stat().st_mode | stat.S_IEXEC)
  monkeypatch.setattr(torch_steps, "CASES", {"lstm": {}})
  monkeypatch.setattr(compare_torch, "training", lambda name: name)
  turns = iter((9.0, 1.5, 1.0))
  monkeypatch.setattr(measure, "median_seconds", lambda *_: next(turns))
  result = compare_torch.against_torch(str(script), 1)
  assert result["torch"] == "9.9"
  assert result["cases"]["lstm"] == {"seconds": 1.5, "torch_seconds": 3.0, "faster": 2}
  text = table.report({"machine": {}, "repeats": 1, "against": result})
  assert "| lstm | 1.5 | 3 | 2 |" in text
  with pytest.raises(UserError, match="PyTorch does not run there"):
    compare_torch.theirs(str(tmp_path / "absent"), 1, "lstm")


def test_wrong_flags_are_one_line_and_exit_code_2():
  cases = {
    "--repeats=5": "nothing to measure",
    "--against=moon": "--against='moon' must be torch",
    "--dispatch --repeats=0": "--repeats=0 must be positive",
    "--dispatch --epochs=1": "--epochs=1 must be 0",
    "--dispatch --replicas=1,x": "--replicas='1,x' must be like 1,5,20",
    "--dispatch --devices=0": "--devices='0' must be like 1,5,20",
    "--dispatch --replicas=": "--replicas='' must be like 1,5,20",
    "--dispatch --startup": "--startup needs --config",
  }
  names = [
    case.split("=")[0].removeprefix("--") for line in cases for case in line.split()
  ]
  # One interpreter for all: its flags are not those of the tests.
  program = (
    "import sys\nfrom absl import flags\nfrom benchmarks import __main__ as bench\n"
    f"for case in {list(cases)!r}:\n"
    "  flags.FLAGS.unparse_flags()\n"
    f"  for name in {names}: flags.FLAGS[name].unparse()\n"
    "  flags.FLAGS(['bench', *case.split()])\n"
    "  try: bench.main(['bench'])\n"
    "  except SystemExit as stop: print(stop.code)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT
  )
  assert done.stdout.split() == ["2"] * len(cases)
  lines = done.stderr.splitlines()
  assert len(lines) == len(cases)
  for line, message in zip(lines, cases.values(), strict=True):
    assert line.startswith("error: ") and message in line
