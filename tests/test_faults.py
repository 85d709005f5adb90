"""Faults of the machine are one line too, with an exit code of their own."""

import errno
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import toy
from paths import ROOT

from msa_jax import command, models
from msa_jax.data.__main__ import main as data_main
from msa_jax.errors import MachineError, UserError, of_system
from msa_jax.runs import run
from msa_jax.safe_io import files
from msa_jax.training.run_directory import RunDirectory

TEXT = np.random.default_rng(0).normal(size=(40, 5, 6)).astype(np.float32)


def limited(size, *arguments):
  """Runs a command that may write files of so many bytes at most."""

  def limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

  return subprocess.run(
    [sys.executable, "-m", *arguments],
    cwd=ROOT,
    env={**os.environ, "JAX_COMPILATION_CACHE_DIR": "", "PYTHONDONTWRITEBYTECODE": "1"},
    preexec_fn=limit,
    capture_output=True,
    text=True,
    timeout=200,
  )


def is_one_line(done, message):
  lines = done.stderr.strip().splitlines()
  assert done.returncode == 1, done.stderr
  assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
  assert message in lines[0]


def test_a_full_disk_while_converting_is_one_line_and_loses_nothing(tmp_path):
  source, output = tmp_path / "a.npz", tmp_path / "b.npz"
  np.savez(source, **{"train/text": TEXT, "train/labels/sentiment": np.ones(40)})
  assert data_main(["convert", str(source), str(output)]) == 0
  before = output.read_bytes()
  names = ("msa_jax.data", "convert", str(source), str(output), "--force")
  is_one_line(limited(2000, *names), f"cannot write {output}: File too large")
  assert output.read_bytes() == before
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_a_full_disk_while_a_run_begins_is_one_line(tmp_path):
  sizes = [
    f"--config.data.synthetic.{name}" for name in ("sizes=8,4,4", "videos=2,1,1")
  ]
  names = ("msa_jax.main", "--config=lf_dnn", *sizes, f"--workdir={tmp_path / 'run'}")
  is_one_line(limited(200, *names), "File too large")


@pytest.mark.parametrize(
  ("number", "code", "kind"),
  [
    (errno.ENOSPC, 1, MachineError),
    (errno.EROFS, 1, MachineError),
    (errno.EFBIG, 1, MachineError),
    (errno.EIO, 1, MachineError),
    (errno.EMFILE, 1, MachineError),
    (errno.ENOENT, 2, UserError),
    (errno.ENOTDIR, 2, UserError),
    (errno.EACCES, 2, UserError),
    (errno.ENAMETOOLONG, 2, UserError),
  ],
)
def test_a_systems_error_is_the_machines_or_the_users(number, code, kind, capsys):
  raised = OSError(number, os.strerror(number), "folder/a.csv")
  assert type(of_system(raised)) is kind
  with pytest.raises(SystemExit) as ended, command.one_line():
    raise raised
  assert ended.value.code == code
  said = capsys.readouterr().err
  assert said == f"error: folder/a.csv: {os.strerror(number)}\n"


def test_a_lack_of_memory_is_the_machines(capsys):
  with pytest.raises(SystemExit) as ended, command.one_line():
    raise MemoryError
  assert ended.value.code == 1
  assert capsys.readouterr().err == "error: there is not enough memory for this\n"


def test_mistakes_of_ours_are_not_hidden():
  with pytest.raises(KeyError), command.one_line():
    raise KeyError("ours")


def test_whoever_closes_the_pipe_early_gets_no_complaint(tmp_path):
  source = tmp_path / "a.npz"
  np.savez(source, **{"train/text": TEXT})
  reader, writer = os.pipe()
  os.close(reader)
  done = subprocess.run(
    [sys.executable, "-m", "msa_jax.data", "check", str(source)],
    cwd=ROOT,
    stdout=writer,
    stderr=subprocess.PIPE,
    text=True,
    timeout=200,
  )
  os.close(writer)
  assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
  "error",
  [
    MemoryError(),
    RecursionError("too deep"),
    OverflowError("too large"),
    EOFError(),
    AttributeError("no such attribute"),
    NotImplementedError("compression"),
    RuntimeError("a line\nand another"),
    OSError("NumPy says so"),
    OSError(errno.EIO, os.strerror(errno.EIO)),
  ],
)
def test_whatever_a_library_raises_is_one_line_with_the_path(error):
  with (
    pytest.raises(UserError, match="^a/b.pkl") as raised,
    files.reading("a/b.pkl", "x"),
  ):
    raise error
  assert "\n" not in str(raised.value)
  assert raised.value.exit_code == (1 if getattr(error, "errno", 0) else 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  models.SYSTEMS["toy"] = toy.SYSTEM
  folder = tmp_path_factory.mktemp("run")
  config = toy.config().replace("optim", epochs=1)
  run.train(config, folder, toy.corpus())
  yield folder
  del models.SYSTEMS["toy"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_figures_that_cannot_be_written_are_given_all_the_same(
  trained, monkeypatch, caplog, number
):
  kept = run.evaluate(trained, corpus=toy.corpus())
  (trained / "evaluation.json").unlink()

  def full(*_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(RunDirectory, "write_text", full)
  assert run.evaluate(trained, corpus=toy.corpus()) == kept
  assert f"the figures are not kept: {os.strerror(number)}" in caplog.text.replace(
    "the system: ", ""
  )


def test_options_that_change_no_number_may_change_when_a_run_goes_on(trained):
  config = toy.config().replace("optim", epochs=1)
  config = config.replace(
    "train", checkpoint_every_seconds=7.0, steps_per_call=3, eval_batch_size=5
  )
  config = config.replace("data", device_budget_mib=7)
  run.train(config, trained, toy.corpus())
  assert RunDirectory(trained).experiment().train.steps_per_call == 3
  with pytest.raises(UserError, match="a run with other settings .optim.batch_size"):
    run.train(config.replace("optim", batch_size=4), trained, toy.corpus())
