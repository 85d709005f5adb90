"""The command line: bad input is one line and exit code 2, a good run works."""

import re
import subprocess
import sys

import pytest
from paths import ROOT

TINY = (
  "--config.data.synthetic.sizes=32,16,16",
  "--config.data.synthetic.videos=4,2,2",
  "--config.data.synthetic.widths=8,3,4",
  "--config.data.max_steps=8",
  "--config.model.token_dim=16",
  "--config.model.fused_dim=8",
  "--config.model.fusion=single",
  "--config.optim.epochs=1",
)


def _command(*arguments, module="main"):
  package = module if module == "benchmarks" else f"msa_jax.{module}"
  return subprocess.run(
    [sys.executable, "-m", package, *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      ("--config=configs/hgem.py", "--config.optim.bach=3"),
      "has no 'bach'; did you mean batch_size",
    ),
    (("--config=configs/hgem.py:mois",), "'mois' must be one of iemocap"),
    (("--config=configs/none.py",), "configs/none.py"),
    (("--mode=fly",), "--mode=fly"),
    ((), "needs --config"),
    (("--mode=evaluate", "--workdir=nowhere"), "nowhere holds no run"),
    (
      ("--config=configs/hgem.py", "--config.data.path=nowhere.pkl"),
      "nowhere.pkl",
    ),
    (("--config=configs/hgem.py", "--config.model.fusion=soup"), "soup"),
    (("--config=configs/hgem.py", "--missing=text"), "needs --mode=evaluate"),
    (
      ("--config=configs/hgem.py", "--config.missing.train=fog"),
      "config.missing.train",
    ),
    (("--config=configs/hgem.py", "--config.optim.batch_size=0"), "must be positive"),
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path):
  if arguments and "--mode=evaluate" not in arguments:
    arguments = (*arguments, f"--workdir={tmp_path}")
  _is_one_line(_command(*arguments), message)


@pytest.mark.parametrize(
  ("module", "arguments", "message"),
  [
    ("studies", ("balance", "--config=configs/awf.py:mois"), "'mois' must be one of"),
    ("benchmarks", ("--config=configs/awf.py", "--config.optim.bach=3"), "'bach'"),
    ("report", ("--colour=red",), "Unknown command line flag 'colour'"),
  ],
)
def test_the_other_commands_answer_wrong_flags_alike(module, arguments, message):
  _is_one_line(_command(*arguments, module=module), message)


def _is_one_line(done, message):
  assert done.returncode == 2, done.stderr
  lines = done.stderr.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
  assert message in lines[0] and "Traceback" not in lines[0]


def test_train_evaluate_and_predict_from_the_command_line(tmp_path):
  workdir, output = f"--workdir={tmp_path / 'run'}", tmp_path / "p.csv"
  trained = _command("--config=configs/hgem.py", *TINY, workdir)
  assert trained.returncode == 0, trained.stderr
  assert "Bayes-optimal mae" in trained.stdout
  figure = re.search(r"test sentiment: mae ([0-9.]+)", trained.stdout).group(1)
  evaluated = _command("--mode=evaluate", workdir)
  assert evaluated.returncode == 0, evaluated.stderr
  assert f"test sentiment: mae {figure}" in evaluated.stdout
  corpus = tmp_path / "new.npz"
  code = (
    "import numpy as np, sys\n"
    "np.savez(sys.argv[1], text=np.ones((3, 4, 8), 'f'),"
    " audio=np.random.default_rng(0).normal(size=(3, 9, 3)))"
  )
  subprocess.run([sys.executable, "-c", code, str(corpus)], check=True)
  predicted = _command(
    "--mode=predict", workdir, f"--input={corpus}", f"--output={output}"
  )
  assert predicted.returncode == 0, predicted.stderr
  rows = output.read_text().splitlines()
  assert len(rows) == 4
  assert {"id", "sentiment", "sentiment_class", "gate1_sparse"} <= set(
    rows[0].split(",")
  )
