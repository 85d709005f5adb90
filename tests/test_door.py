"""`msa-jax COMMAND`: one door, one flag style, help that ends with 0."""

import subprocess
import sys

import pytest
from paths import ROOT, SUPPORT

from msa_jax import __main__ as door
from msa_jax import command
from msa_jax.errors import UserError


def _msa_jax(*arguments, folder=ROOT):
  return subprocess.run(
    [sys.executable, "-m", "msa_jax", *map(str, arguments)],
    cwd=folder,
    env={"PYTHONPATH": f"{ROOT}:{SUPPORT}", "PATH": "", "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ((), "predict   predicts every sample"),
    (("--help",), "bench     measures"),
    (("train", "--help"), "Configs: almt, awf, "),
    (("train", "--config=lf_dnn:mosi", "--help"), "--config.optim.batch_size=128"),
    (("evaluate", "-h"), "--missing"),
    (("predict", "--help"), "--output           Where predict writes. (default: pred"),
    (("data", "--help"), "usage: msa-jax data"),
    (("studies", "--help"), "leaderboard"),
    (("report", "--help"), "--sample"),
    (("bench", "--help"), "--dispatch"),
  ],
)
def test_help_is_real_and_ends_with_0(arguments, said, tmp_path):
  done = _msa_jax(*arguments, folder=tmp_path)
  assert done.returncode == 0, done.stderr
  assert said in done.stdout and not done.stderr


@pytest.mark.parametrize(
  ("arguments", "variants"),
  [
    (("--config=derl", "--config.data.path=x.pkl"), ":own"),
    (("--config", "derl:tuned", "--config.data.path", "x.pkl"), ":tuned,own"),
    (("--config=derl", "--data=x.pkl"), ":own"),
    (("--config=derl:mosi", "--config.data.path=x.pkl"), ":mosi"),
    (("--config=derl", "--config.data.path="), ""),
    (("--config=derl",), ""),
  ],
)
def test_data_of_one_s_own_have_a_recipe_of_their_own(arguments, variants):
  made = " ".join(command._with_files(["program", *arguments]))
  assert f"{ROOT / 'configs' / 'derl.py'}{variants} " in f"{made} "


def test_the_version_is_told(monkeypatch, capsys):
  monkeypatch.setattr(door.msa_jax, "__version__", "1.2", raising=False)
  with pytest.raises(SystemExit) as ended:
    door.main(["--version"])
  assert ended.value.code == 0 and capsys.readouterr().out == "1.2\n"


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (("trian",), "must be one of train, evaluate, .* Did you mean train?"),
    (("evaluate", "--mode=train"), "takes no --mode"),
    (("train", "--config=lf_dnn", "optim.batch=7"), "mean --config.optim.batch=7?"),
    (("train", "--config", "moon"), "no config or system of this name"),
    (("train", "--config=lf_dnn", "--config.optim.lr=1"), "has no 'lr'"),
    (("predict", "--workdir=x"), "needs --input"),
    (("data", "chekc"), "invalid choice"),
    (("bench", "lf_dnn"), "'lf_dnn' is no flag; flags begin with --"),
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, said, tmp_path):
  done = _msa_jax(*arguments, folder=tmp_path)
  assert done.returncode == 2
  assert len(done.stderr.strip().splitlines()) == 1, done.stderr
  pieces = said.split(" .* ")
  assert done.stderr.startswith("error: ")
  assert all(piece in done.stderr for piece in pieces), done.stderr


def test_benchmarks_are_not_in_the_installed_package(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(door, "__file__", str(tmp_path / "msa_jax" / "__main__.py"))
  with pytest.raises(SystemExit) as ended:
    door.main(["bench"])
  assert ended.value.code == 2
  assert "run it in a checkout" in capsys.readouterr().err


def test_keys_below_a_value_are_left_to_the_parser():
  command._check_key({"a": {"b": (1, 2)}}, "config.a.b.0")
  with pytest.raises(UserError, match="config.a has no 'c'; The choices are b"):
    command._check_key({"a": {"b": 1}}, "config.a.c")


CONFIG = """
import own_model
from msa_jax import config, models

models.register("mine", own_model.SYSTEM)


def get_config(text=""):
  made = config.base({"name": "mine", "width": 4})
  made.data.synthetic.update({"sizes": (16, 8, 8), "videos": (4, 2, 2)})
  made.optim.epochs = 1
  return config.finish(made)
"""


def test_a_config_file_that_registers_its_system_serves_every_command(tmp_path):
  (tmp_path / "mine.py").write_text(CONFIG)
  run = ("--workdir=run", "--config=mine.py")
  trained = _msa_jax("train", *run, folder=tmp_path)
  assert trained.returncode == 0, trained.stderr
  evaluated = _msa_jax("evaluate", *run, folder=tmp_path)
  assert "test sentiment: mae" in evaluated.stdout, evaluated.stderr
  without = _msa_jax("evaluate", run[0], folder=tmp_path)
  assert without.returncode == 2
  assert "pass the --config file that registers it" in without.stderr
