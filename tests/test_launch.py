"""Launch scripts and the notebook, with everything from outside played by stand-ins."""

import dataclasses
import json
import os
import pathlib
import stat
import subprocess
import sys

import matplotlib
import pytest
import yaml
from paths import ROOT

from msa_jax.data.synthetic.generator import TINY

matplotlib.use("agg")

FOLDER = ROOT / "launch"
SCRIPTS = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")])


def _run(script, *arguments, **environment):
  return subprocess.run(
    ["bash", str(FOLDER / script), *arguments],
    capture_output=True,
    text=True,
    env={**os.environ, **environment},
  )


def _echo(path):
  """An executable that prints its name and its arguments, one a line."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('#!/bin/sh\nprintf "%s\\n" "$(basename "$0")" "$@"\n')
  path.chmod(path.stat().st_mode | stat.S_IEXEC)
  return path


def test_shellcheck_finds_nothing_and_scripts_can_be_run():
  assert {path.name for path in SCRIPTS} == {"local.sh", "slurm.sbatch", "tpu_vm.sh"}
  checker = pathlib.Path(sys.executable).parent / "shellcheck"
  done = subprocess.run([checker, *SCRIPTS], capture_output=True, text=True)
  assert done.stdout + done.stderr == ""
  assert all(os.access(path, os.X_OK) for path in SCRIPTS)


def test_local_hands_its_flags_to_the_trainer(tmp_path):
  _echo(tmp_path / "bin" / "python")
  done = _run("local.sh", "--config=a b.py", "--workdir=r", VENV=str(tmp_path))
  assert done.stdout.splitlines() == [
    "python", "-m", "msa_jax.main", "--config=a b.py", "--workdir=r"
  ]  # fmt: skip


def test_local_makes_the_environment_once(tmp_path):
  # Stands in for `python -m venv FOLDER`: makes one whose programs only print.
  maker = _echo(tmp_path / "maker")
  made = tmp_path / "venv"
  _echo(tmp_path / "echo")
  maker.write_text(
    f"#!/bin/sh\nmkdir -p {made}/bin\ncp {tmp_path}/echo {made}/bin/python\n"
    f"cp {tmp_path}/echo {made}/bin/pip\n"
  )
  made_by = {"VENV": str(made), "PYTHON": str(maker), "JAX_EXTRA": "tpu"}
  first = _run("local.sh", "--config=c.py", **made_by).stdout.splitlines()
  assert first[:8] == ["pip", "install", "-q", "jax[tpu]", "pip", "install", "-q", "-e"]
  second = _run("local.sh", "--config=c.py", **made_by).stdout.splitlines()
  assert second == ["python", "-m", "msa_jax.main", "--config=c.py"]


def test_slurm_gives_every_task_of_an_array_its_own_seed_and_folder(tmp_path):
  _echo(tmp_path / "bin" / "srun")
  environment = {
    "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
    "SLURM_SUBMIT_DIR": str(tmp_path),
  }
  flags = ("--config=c.py", "--workdir=runs/a")
  one = _run("slurm.sbatch", *flags, **environment).stdout.splitlines()
  start = ["srun", "--kill-on-bad-exit=1", ".venv/bin/python", "-m", "msa_jax.main"]
  assert one == [*start, *flags]
  task = _run("slurm.sbatch", *flags, **environment, SLURM_ARRAY_TASK_ID="3")
  assert task.stdout.splitlines()[5:] == [
    "--config=c.py", "--workdir=runs/a-seed3", "--config.replicas.seeds=3,"
  ]  # fmt: skip
  nodes = _run("slurm.sbatch", *flags, **environment, SLURM_NTASKS="8")
  assert nodes.stdout.splitlines() == [*start, *flags, "--coordinator=auto"]
  header = (FOLDER / "slurm.sbatch").read_text()
  assert "#SBATCH --signal=TERM@60" in header and "#SBATCH --requeue" in header


def test_slurm_puts_a_stopped_job_back_into_the_queue(tmp_path):
  _echo(tmp_path / "bin" / "scontrol")
  stopped = _echo(tmp_path / "bin" / "srun")
  environment = {
    "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
    "SLURM_SUBMIT_DIR": str(tmp_path),
    "SLURM_JOB_ID": "17",
  }
  for code, queued in ((75, ["scontrol", "requeue", "17"]), (2, []), (0, [])):
    stopped.write_text(f"#!/bin/sh\nexit {code}\n")
    done = _run("slurm.sbatch", "--config=c.py", **environment)
    assert (done.returncode, done.stdout.splitlines()) == (code, queued)


def test_tpu_vm_creates_runs_on_every_worker_fetches_and_deletes():
  known = {"NAME": "n", "ZONE": "z", "DRY_RUN": "1"}
  create = _run("tpu_vm.sh", "create", **known, TYPE="v5litepod-16", SPOT="1").stdout
  assert create.split()[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "n"]
  assert {"--accelerator-type=v5litepod-16", "--spot", "--zone=z"} <= set(
    create.split()
  )
  copy, train = _run("tpu_vm.sh", "run", "--config=c d.py", **known).stdout.splitlines()
  assert "scp" in copy.split() and "--worker=all" in copy.split()
  assert "--worker=all" in train and "--config=c" in train and "runs/n" in train
  assert "--coordinator" not in train and "gcsfuse" not in train
  shared = _run("tpu_vm.sh", "run", "--config=c.py", **known, BUCKET="mine").stdout
  assert "gcsfuse --implicit-dirs mine runs" in shared
  assert "--workdir=runs/n --coordinator=auto --config=c.py" in shared
  fetch = _run("tpu_vm.sh", "fetch", **known).stdout.split()
  assert {"n:msa_jax/runs/n", "runs/", "--worker=0"} <= set(fetch)
  assert "delete n --quiet --zone=z" in _run("tpu_vm.sh", "delete", **known).stdout


@pytest.mark.parametrize("arguments", [("create",), ("fly",)])
def test_tpu_vm_says_how_it_is_used(arguments):
  known = {"NAME": "n", "ZONE": "z"} if arguments == ("fly",) else {}
  done = _run("tpu_vm.sh", *arguments, **known)
  assert done.returncode == 2 and done.stderr.startswith("usage: NAME=")


def test_the_jobset_runs_the_trainer_on_as_many_chips_as_its_topology_has():
  job = yaml.safe_load((FOLDER / "gke_jobset.yaml").read_text())
  assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  (train,) = job["spec"]["replicatedJobs"]
  hosts = train["template"]["spec"]
  pod = hosts["template"]["spec"]
  (container,) = pod["containers"]
  topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
  rows, columns = map(int, topology.split("x"))
  chips = int(container["resources"]["limits"]["google.com/tpu"])
  assert hosts["parallelism"] == hosts["completions"]
  assert hosts["parallelism"] * chips == rows * columns
  assert container["resources"]["requests"] == container["resources"]["limits"]
  assert container["command"][:3] == ["python", "-m", "msa_jax.main"]
  assert f"--config.sharding.data={rows * columns}" in container["command"]
  assert "--coordinator=auto" in container["command"] and hosts["parallelism"] > 1
  mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
  assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
  (workdir,) = [f for f in container["command"] if f.startswith("--workdir=")]
  assert workdir.startswith(f"--workdir={mounts['runs']}/")


_TINY_OPTIONS = """
config.data.synthetic.update(tiny)
config.data.max_steps = 4
config.data.modalities = ("text", "vision")
config.optim.update({"epochs": 2, "batch_size": 12})
config.model.update({"token_dim": 8})
"""


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  notebook = json.loads((FOLDER / "colab.ipynb").read_text())
  assert notebook["nbformat"] == 4
  names = {"tiny": dataclasses.asdict(TINY)}
  ran = []
  for cell in notebook["cells"]:
    assert not cell.get("outputs") and cell.get("execution_count") is None
    if cell["cell_type"] != "code":
      continue
    tags = cell["metadata"].get("tags", [])
    source = "".join(cell["source"])
    compile(source, "colab.ipynb", "exec")
    if "install" in tags:
      continue
    exec(source, names)
    if "options" in tags:
      exec(_TINY_OPTIONS, names)
    ran.append(source)
  assert len(ran) == 4
  assert len(names["history"]) == 2
  assert 0 < names["figures"]["mae"]["mean"] < 6
  left, right = names["figure"].axes
  assert [len(line.get_xdata()) for line in left.lines] == [2, 2]
  heights = [bar.get_height() for bar in right.patches]
  assert sum(heights) == pytest.approx(1.0, abs=1e-3)
