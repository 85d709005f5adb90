"""Where two tasks need more than what they share, own experts give it to them."""

import pytest
from changes import change

from configs import mmolre
from msa_jax.config.experiment import experiment
from msa_jax.runs import run

pytestmark = pytest.mark.slow


def test_own_experts_hold_what_two_tasks_cannot_share(tmp_path):
  plain = change(experiment(mmolre.get_config("conflict")), train={"references": False})
  found = {}
  for sharing in ("mixed", "hard"):
    config = change(plain, model={"sharing": sharing}, optim={"epochs": 25})
    figures = run.train(config, tmp_path / sharing)["splits"]["test"]
    found[sharing] = [
      figures["emotion"]["wa"]["mean"],
      figures["sentiment"]["mae"]["mean"],
    ]
  (accuracy, error), (shared_accuracy, shared_error) = found["mixed"], found["hard"]
  assert accuracy > 0.8 and error < 0.3
  assert shared_accuracy < accuracy - 0.1 or shared_error > error + 0.2
