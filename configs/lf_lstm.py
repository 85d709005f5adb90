"""LF-LSTM: late fusion of one LSTM per modality (host of AWF's tables 1 and 3).

  python -m msa_jax.main --config=configs/lf_lstm.py
  python -m msa_jax.main --config=configs/lf_lstm.py:mosi --config.data.path=mosi.pkl
  python -m msa_jax.main --config=configs/lf_lstm.py --config.balance.enabled=True

Variants: `mosi`, `mosei`, `sims`, `iemocap` (width, batch and dropout of AWF's table
2), `paper` (its learning rate for MOSI, unaligned sequences), `sgd`, `one_strong` (a
synthetic corpus whose text says nearly everything). Published (AWF): MOSI Acc-2 .748,
with B-fusion .774.
"""

import dataclasses

import ml_collections

from msa_jax import config as config_lib
from msa_jax.data.world import ONE_STRONG
from msa_jax.models import lf_lstm


def get_config(variants: str = "") -> ml_collections.ConfigDict:
  """Builds the config; `variants` are comma-separated names of `VARIANTS`."""
  chosen = config_lib.parse_variants(variants, VARIANTS)
  config = config_lib.base(lf_lstm.options())
  config.data.max_steps = 50
  config.data.align = "pool"
  config.optim.update(
    {"name": "adamw", "lr_new": 1e-3, "weight_decay": 1e-3, "clip": 1.0}
  )
  config.optim.update({"epochs": 50, "batch": 32, "patience": 8})
  for name in sorted(chosen, key=tuple(VARIANTS).index):  # data sets come first
    VARIANTS[name](config)
  return config_lib.finish(config)


def _table2(d, post, dropout, batch, steps=50):
  def apply(config):
    config.model.update({"d": d, "post": post})
    for name in config.model.dropout:
      config.model.dropout[name] = dropout
    config.optim.update({"batch": batch})
    config.data.max_steps = steps

  return apply


def _iemocap(config):
  _table2(256, 128, 0.4, 24, steps=20)(config)
  config.model.task = "emotion"


def _paper(config):
  config.data.align = "none"
  config.data.max_steps = 0
  config.optim.update({"name": "adam", "weight_decay": 0.0, "clip": 0.0})
  config.optim.update({"warmup": 0.0, "schedule": "constant", "lr_new": 1e-4})


def _sgd(config):
  config.optim.update({"name": "sgd", "momentum": 0.9, "lr_new": 0.05})
  config.optim.update({"weight_decay": 0.0, "schedule": "cosine"})


def _one_strong(config):
  config.data.synthetic.update(dataclasses.asdict(ONE_STRONG))


VARIANTS = {
  "mosi": _table2(256, 128, 0.0, 64),
  "mosei": _table2(128, 128, 0.4, 64),
  "sims": _table2(128, 64, 0.0, 16),
  "iemocap": _iemocap,
  "paper": _paper,
  "sgd": _sgd,
  "one_strong": _one_strong,
}
