"""CENet: cross-modal enhancement inside a text encoder (Wang et al., IEEE TMM 2022).

  python -m msa_jax.main --config=configs/cenet.py
  python -m msa_jax.main --config=configs/cenet.py:mosi --config.data.path=mosi.pkl \
    --config.text.input=encoder --config.text.encoder=FOLDER \
    --config.text.finetune=all

Variants: `mosi`, `mosei`, `sims`, `simsv2` (MMSA's settings), `own` (data of your own:
as `mosi`), `codes` (cluster codes of frames in place of the frames), `paper` (MMSA's
trainer; its rate is that of an encoder that is trained), `official` (the authors'
trainer, with codes; add --config.text.linguistic=True for their inputs).

Made for a text encoder that is trained, where the enhancement sits after the first
layer; features of a frozen one are enhanced themselves. The default trains on the
synthetic corpus, ten seconds on two cores. Published: MMSA's table MOSI MAE .725, Corr
.795; a user's run of the official code MAE .745, Corr .780.
"""

import ml_collections

from msa_jax import config as config_lib
from msa_jax.config import presets
from msa_jax.models import cenet


def get_config(variants: str = "") -> ml_collections.ConfigDict:
  """Builds the config; `variants` are comma-separated names of `VARIANTS`."""
  chosen = config_lib.parse_variants(variants, VARIANTS, DATA_SETS)
  config = config_lib.base(cenet.options())
  # Features of a frozen encoder have no sentence token that was made for the task.
  config.model.text_pool = "mean"
  config.data.update({"max_steps": 50, "buckets": 4})
  config.optim.update({"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01})
  config.optim.learning_rates = ml_collections.ConfigDict({"head_bias": 1e-3})
  decays = {"head_bias": 0.01}
  config.optim.weight_decays = ml_collections.ConfigDict(decays)
  config.optim.update({"grad_clip_norm": 2.0, "epochs": 30, "patience": 8})
  return presets.apply(config, chosen, VARIANTS, DATA_SETS)


def _mosi(config):
  config.optim.batch_size = 64


def _sims(config):
  config.data.max_steps = 39
  config.optim.batch_size = 32


def _simsv2(config):
  config.data.max_steps = 39
  config.optim.batch_size = 64


def _codes(config):
  config.model.embedding = "codes"
  config.data.num_frame_clusters = config.model.num_codes


def _rate(config, rate):
  config.text.learning_rate = rate
  config.optim.learning_rate = rate
  config.optim.learning_rates.head_bias = rate


def _paper(config):
  config.model.update({"compat": "mmsa", "text_pool": "first"})
  config.data.buckets = 0
  _rate(config, 1e-5)
  config.optim.update({"name": "adam", "weight_decay": 1e-4, "epsilon": 3e-8})
  config.optim.weight_decays.head_bias = 0.0
  config.optim.update({"warmup_fraction": 0.0, "schedule": "constant"})
  config.optim.update({"grad_clip_norm": 2.0, "epochs": 100, "patience": 8})


def _official(config):
  _codes(config)
  config.model.text_pool = "first"
  config.loss.task = "mse"
  config.data.buckets = 0
  _rate(config, 6e-5)
  config.optim.update({"name": "adamw", "weight_decay": 0.0, "epochs": 40})
  config.optim.update({"warmup_fraction": 0.4, "schedule": "linear"})
  config.optim.update({"grad_clip_norm": 2.0, "batch_size": 64, "patience": 0})


VARIANTS = {
  "mosi": _mosi,
  "mosei": _mosi,
  "sims": _sims,
  "simsv2": _simsv2,
  "own": _mosi,
  "codes": _codes,
  "paper": _paper,
  "official": _official,
}
DATA_SETS = ("mosi", "mosei", "sims", "simsv2", "own")
