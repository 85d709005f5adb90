"""Experiments with other options, as tests want them."""

import dataclasses

from msa_jax.config import spec as spec_lib
from msa_jax.config.experiment import Experiment, experiment
from msa_jax.models import get


def change(config, **sections) -> Experiment:
  """An experiment (or config) with some options of some sections replaced."""
  config = experiment(config)
  for section, values in sections.items():
    old = getattr(config, section)
    if dataclasses.is_dataclass(old):
      config = config.replace(section, **values)
    else:
      config = config.replace(**{section: {**old, **values}})
  return config


def resolve(config, corpus) -> Experiment:
  """An experiment resolved against a corpus that needs no preprocessing."""
  config = experiment(config)
  terms = get(config.system).terms(config.loss, spec_lib.spec_of(corpus))
  losses = {name: terms[name].loss for name in corpus.tasks}
  return spec_lib.resolve(config, corpus, losses)
