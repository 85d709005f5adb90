"""MISA: modality-invariant and modality-specific codes (Hazarika et al., ACM MM 2020).

  python -m msa_jax.main --config=configs/misa.py
  python -m msa_jax.main --config=configs/misa.py:mosi --config.data.path=mosi.pkl
  python -m msa_jax.main --config=configs/misa.py:mosi,adversarial \
    --config.data.path=mosi.pkl

Variants: `mosi`, `mosei`, `sims`, `simsv2` (MMSA's sizes and weights of the losses),
`own` (data of your own: as `mosi`), `adversarial` (a discriminator in place of central
moments), `paper` (MMSA's trainer: sums of two batches' gradients, clipped by value; its
rate is that of an encoder that is trained), `official` (the authors' trainer).

The default trains on the synthetic corpus, a minute on two cores. Published, with a
fine-tuned BERT: MOSI MAE .783, Corr .761; MOSEI MAE .555, Corr .756.
"""

import ml_collections

from msa_jax import config as config_lib
from msa_jax.config import presets
from msa_jax.models import misa


def get_config(variants: str = "") -> ml_collections.ConfigDict:
  """Builds the config; `variants` are comma-separated names of `VARIANTS`."""
  chosen = config_lib.parse_variants(variants, VARIANTS, DATA_SETS)
  config = config_lib.base(misa.options())
  config.model.update({"hidden_dim": 64, "ffn_dim": 128})
  config.loss.task = "mse"
  _weights(config, 0.1, 0.3, 1.0)
  config.data.update({"max_steps": 50, "buckets": 4})
  config.optim.update({"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01})
  config.optim.update({"grad_clip_norm": 1.0, "epochs": 30, "patience": 8})
  return presets.apply(config, chosen, VARIANTS, DATA_SETS)


def _weights(config, difference, similarity, reconstruction):
  config.loss.update({"difference": difference, "similarity": similarity})
  config.loss.reconstruction = reconstruction


def _mosi(config):
  config.model.update({"hidden_dim": 128, "ffn_dim": 2048, "dropout": 0.2})
  config.optim.batch_size = 16


def _mosei(config):
  config.model.update({"hidden_dim": 128, "ffn_dim": 2048, "dropout": 0.5})
  _weights(config, 0.3, 0.8, 1.0)
  config.optim.batch_size = 64


def _sims(config):
  config.model.update({"hidden_dim": 128, "ffn_dim": 2048, "dropout": 0.0})
  config.model.reverse_weight = 0.5
  _weights(config, 0.3, 1.0, 0.8)
  config.data.max_steps = 39
  config.optim.batch_size = 64


def _simsv2(config):
  config.model.update({"hidden_dim": 64, "ffn_dim": 2048, "dropout": 0.5})
  config.model.reverse_weight = 0.5
  _weights(config, 0.5, 1.0, 0.5)
  config.data.max_steps = 39
  config.optim.batch_size = 16


def _adversarial(config):
  config.model.similarity = "adversarial"


def _published(config):
  config.data.update({"max_steps": 0, "buckets": 0})
  config.text.learning_rate = 1e-4
  config.optim.update({"name": "adam", "learning_rate": 1e-4, "weight_decay": 0.0})
  config.optim.update({"warmup_fraction": 0.0, "schedule": "constant"})
  config.optim.update({"grad_clip_norm": 0.0, "epochs": 100, "patience": 8})


def _paper(config):
  _published(config)
  config.model.compat = "mmsa"
  config.optim.update({"accumulate_steps": 2, "accumulation": "sum"})
  config.optim.grad_clip_value = 0.8


def _official(config):
  _published(config)
  config.model.dropout = 0.5
  _weights(config, 0.3, 1.0, 1.0)
  config.optim.update({"batch_size": 64, "grad_clip_value": 1.0, "patience": 6})


VARIANTS = {
  "mosi": _mosi,
  "mosei": _mosei,
  "sims": _sims,
  "simsv2": _simsv2,
  "own": _mosi,
  "adversarial": _adversarial,
  "paper": _paper,
  "official": _official,
}
DATA_SETS = ("mosi", "mosei", "sims", "simsv2", "own")
