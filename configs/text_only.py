"""Text alone: pooled features or encoder states, dropout, one linear layer per task.

  python -m msa_jax.main --config=configs/text_only.py
  python -m msa_jax.main --config=configs/text_only.py:mosi --config.data.path=mosi.pkl
  python -m msa_jax.main --config=configs/text_only.py:mosi \
    --config.data.path=mosi.pkl --config.text.encoder=FOLDER \
    --config.text.input=encoder --config.text.finetune=all

Variants: `mosi`, `mosei`, `sims`, `iemocap` (four yes/no emotions), `dialogues`
(utterances of dialogues as samples, each read by itself).

What a system that reads audio and vision as well has to beat. The default trains on the
synthetic corpus, a few seconds on a core.
"""

import ml_collections

from msa_jax import config as config_lib
from msa_jax.config import presets
from msa_jax.models import text_only


def get_config(variants: str = "") -> ml_collections.ConfigDict:
  """Builds the config; `variants` are comma-separated names of `VARIANTS`."""
  chosen = config_lib.parse_variants(variants, VARIANTS, DATA_SETS)
  config = config_lib.base(text_only.options())
  config.data.update({"modalities": ("text",), "max_steps": 50, "buckets": 4})
  config.optim.update({"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01})
  config.optim.update({"grad_clip_norm": 1.0, "epochs": 30, "patience": 8})
  return presets.apply(config, chosen, VARIANTS, DATA_SETS)


def _mosi(config):
  config.data.max_steps = 50


def _sims(config):
  config.data.max_steps = 39


def _iemocap(config):
  config.model.tasks = ("emotion",)
  config.data.max_steps = 20


def _dialogues(config):
  config.data.update({"sample_unit": "dialogue", "max_steps": 0, "buckets": 0})
  config.data.standardize = ("text",)


VARIANTS = {
  "mosi": _mosi,
  "mosei": _mosi,
  "sims": _sims,
  "iemocap": _iemocap,
  "dialogues": _dialogues,
}
DATA_SETS = ("mosi", "mosei", "sims", "iemocap")
