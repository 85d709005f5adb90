"""Self-MM: self-supervised multi-task learning (Yu et al., AAAI 2021).

  python -m msa_jax.main --config=configs/self_mm.py
  python -m msa_jax.main --config=configs/self_mm.py:mosi --config.data.path=mosi.pkl
  python -m msa_jax.main --config=configs/self_mm.py:mosi --config.data.path=mosi.pkl \
    --config.text.input=encoder --config.text.encoder=FOLDER \
    --config.text.finetune=all

Variants: `mosi`, `mosei`, `sims`, `simsv2` (MMSA's sizes), `own` (data of your own: as
`mosi`), `paper` (MMSA's trainer: sums of four batches' gradients, no clipping; its
rates and decays for MOSI are those of an encoder that is trained).

The default trains on the synthetic corpus, half a minute on two cores. Published, with
a fine-tuned BERT: MOSI MAE .713, Corr .798; MMSA's own table MAE .708, Corr .796.
"""

import ml_collections

from msa_jax import config as config_lib
from msa_jax.config import presets
from msa_jax.models import self_mm


def get_config(variants: str = "") -> ml_collections.ConfigDict:
  """Builds the config; `variants` are comma-separated names of `VARIANTS`."""
  chosen = config_lib.parse_variants(variants, VARIANTS, DATA_SETS)
  config = config_lib.base(self_mm.options())
  config.loss.update({f"unimodal_{name}": 1.0 for name in ("text", "audio", "vision")})
  # Of frozen features the mean says more than the first; BERT's sentence token is made
  # by training.
  config.model.text_pool = "mean"
  config.data.update({"max_steps": 50, "buckets": 4})
  config.optim.update({"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01})
  config.optim.learning_rates = ml_collections.ConfigDict(
    {"audio": 1e-3, "vision": 1e-3}
  )
  decays = {"text_encoder": 0.01, "audio": 0.01, "vision": 0.01}
  config.optim.weight_decays = ml_collections.ConfigDict(decays)
  config.optim.update({"grad_clip_norm": 1.0, "epochs": 30, "patience": 8})
  return presets.apply(config, chosen, VARIANTS, DATA_SETS)


def _sizes(config, audio, vision, heads, fusion):
  """Units of the LSTMs with the width of what they say, and of the heads."""
  for name, (hidden, width) in (("audio", audio), ("vision", vision)):
    config.model.hidden_dims[name] = hidden
    config.model.feature_dims[name] = width
  for name, width in zip(("text", "audio", "vision"), heads, strict=True):
    config.model.head_dims[name] = width
  config.model.fusion_dim = fusion


def _paper(config):
  config.model.update({"compat": "mmsa", "text_pool": "first"})
  config.data.update({"max_steps": 0, "buckets": 0})
  config.text.learning_rate = 5e-5
  config.optim.update({"name": "adam", "learning_rate": 1e-3, "weight_decay": 1e-3})
  config.optim.learning_rates.update({"audio": 5e-3, "vision": 5e-3})
  decays = {"text_encoder": 1e-3, "audio": 0.01, "vision": 1e-3}
  config.optim.weight_decays.update(decays)
  config.optim.update({"warmup_fraction": 0.0, "schedule": "constant"})
  config.optim.update({"grad_clip_norm": 0.0, "epochs": 100, "patience": 8})
  config.optim.update({"accumulate_steps": 4, "accumulation": "sum"})


def _mosi(config):
  _sizes(config, (16, 16), (32, 32), (32, 16, 32), 128)
  config.optim.batch_size = 16


def _mosei(config):
  _sizes(config, (16, 16), (32, 32), (32, 16, 32), 128)
  config.model.dropout.update({"text": 0.0, "audio": 0.0})
  config.model.post_dropout = 0.1
  config.optim.batch_size = 32


def _sims(config):
  _sizes(config, (16, 16), (64, 32), (64, 16, 32), 128)
  config.data.max_steps = 39
  config.optim.batch_size = 32


def _simsv2(config):
  _sizes(config, (16, 16), (64, 32), (64, 32, 32), 128)
  config.model.dropout.update({"text": 0.0, "audio": 0.1})
  config.data.max_steps = 39
  config.optim.batch_size = 16


VARIANTS = {
  "mosi": _mosi,
  "mosei": _mosei,
  "sims": _sims,
  "simsv2": _simsv2,
  "own": _mosi,
  "paper": _paper,
}
DATA_SETS = ("mosi", "mosei", "sims", "simsv2", "own")
