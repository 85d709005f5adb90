"""MAG-BERT: audio and vision shift word embeddings (Rahman et al., ACL 2020).

  python -m msa_jax.main --config=configs/mag_bert.py
  python -m msa_jax.main --config=configs/mag_bert.py:mosi \
    --config.data.path=mosi.pkl --config.text.input=encoder \
    --config.text.encoder=FOLDER --config.text.finetune=all

Variants: `mosi`, `mosei`, `sims` (MMSA's settings), `own` (data of your own: as
`mosi`), `paper` (MMSA's trainer; its rate is that of an encoder that is trained),
`official` (the authors' trainer).

Made for a text encoder that is trained, where the gate sits after the embeddings;
features of a frozen one are shifted themselves. The default trains on the synthetic
corpus, ten seconds on two cores. Published (MOSI, as DERL and H-GEM print it): MAE
.784, Corr .782.
"""

import ml_collections

from msa_jax import config as config_lib
from msa_jax.config import presets
from msa_jax.models import mag_bert


def get_config(variants: str = "") -> ml_collections.ConfigDict:
  """Builds the config; `variants` are comma-separated names of `VARIANTS`."""
  chosen = config_lib.parse_variants(variants, VARIANTS, DATA_SETS)
  config = config_lib.base(mag_bert.options())
  # Features of a frozen encoder have no sentence token that was made for the task.
  config.model.text_pool = "mean"
  config.data.update({"align": "pool", "max_steps": 50, "buckets": 4})
  config.optim.update({"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01})
  config.optim.update({"grad_clip_norm": 1.0, "epochs": 30, "patience": 8})
  return presets.apply(config, chosen, VARIANTS, DATA_SETS)


def _mosi(config):
  config.model.dropout = 0.3


def _mosei(config):
  config.model.dropout = 0.2


def _sims(config):
  config.model.dropout = 0.1
  config.data.max_steps = 39


def _paper(config):
  config.model.update({"compat": "mmsa", "text_pool": "first"})
  config.data.buckets = 0
  config.text.learning_rate = 2e-5
  config.optim.update({"name": "adam", "learning_rate": 2e-5, "weight_decay": 0.0})
  config.optim.update({"warmup_fraction": 0.0, "schedule": "constant"})
  config.optim.update({"grad_clip_norm": 0.0, "epochs": 100, "patience": 8})


def _official(config):
  config.model.update({"text_pool": "first", "dropout": 0.5})
  config.loss.task = "mse"
  config.data.buckets = 0
  config.text.learning_rate = 1e-5
  config.optim.update({"name": "adamw", "learning_rate": 1e-5, "weight_decay": 0.01})
  config.optim.update({"warmup_fraction": 0.1, "schedule": "linear", "epochs": 40})
  config.optim.update({"grad_clip_norm": 0.0, "batch_size": 48, "patience": 0})


VARIANTS = {
  "mosi": _mosi,
  "mosei": _mosei,
  "sims": _sims,
  "own": _mosi,
  "paper": _paper,
  "official": _official,
}
DATA_SETS = ("mosi", "mosei", "sims", "own")
