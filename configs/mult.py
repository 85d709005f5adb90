"""MulT: cross-modal transformers (Tsai et al., ACL 2019, arXiv:1906.00295).

  python -m msa_jax.main --config=configs/mult.py
  python -m msa_jax.main --config=configs/mult.py:mosi --config.data.path=mosi.pkl
  python -m msa_jax.main --config=configs/mult.py:mosi,paper --config.data.path=mosi.pkl

Variants: `mosi`, `mosei`, `sims`, `simsv2` (MMSA's settings), `own` (data of your own:
as `mosi`), `iemocap`, `paper` (MMSA's trainer: unaligned frames, padding attended to,
gradients of eight batches summed and clipped by value), `original` (the authors' code:
positions, kernels of one step, width 30, clipped by norm), `sgd`, `one_strong` (a
synthetic corpus whose text says nearly everything), `one_fast` (one whose text is
learned first). Published: MOSI MAE .871, Corr .698 (aligned; the authors), MAE .880,
Corr .702 (MMSA).
"""

import ml_collections

from msa_jax import config as config_lib
from msa_jax.config import presets
from msa_jax.models import mult


def get_config(variants: str = "") -> ml_collections.ConfigDict:
  """Builds the config; `variants` are comma-separated names of `VARIANTS`."""
  chosen = config_lib.parse_variants(variants, VARIANTS, DATA_SETS)
  config = presets.late_fusion(mult.options(), balance=False)
  # Two layers of width 30 are enough for the synthetic corpus, and take a third of the
  # time of MMSA's four of 50.
  config.model.update({"hidden_dim": 30, "num_heads": 6, "num_layers": 2})
  config.model.kernel_sizes.update({"text": 1, "audio": 1, "vision": 1})
  config.optim.update({"epochs": 15, "learning_rate": 1e-3})
  return presets.apply(config, chosen, VARIANTS, DATA_SETS)


def _settings(sizes, kernels, dropout, attention, batch_size, rate):
  def apply(config):
    hidden_dim, num_heads, num_layers = sizes
    config.model.update({"hidden_dim": hidden_dim, "num_heads": num_heads})
    config.model.num_layers = num_layers
    names = ("text", "audio", "vision")
    config.model.kernel_sizes.update(dict(zip(names, kernels, strict=True)))
    sites = ("text", "embed", "relu", "residual", "output")
    config.model.dropout.update(dict(zip(sites, dropout, strict=True)))
    config.model.attention_dropout.update(dict(zip(names, attention, strict=True)))
    config.optim.update({"batch_size": batch_size, "learning_rate": rate})
    config.optim.epochs = 50

  return apply


_mosi = _settings(
  (50, 10, 4), (5, 5, 5), (0.5, 0.2, 0.0, 0.0, 0.5), (0.3, 0.2, 0.0), 16, 2e-3
)
_mosei = _settings(
  (30, 6, 4), (5, 1, 3), (0.3, 0.0, 0.0, 0.0, 0.5), (0.4, 0.0, 0.0), 4, 5e-4
)
_sims = _settings(
  (50, 10, 2), (5, 1, 1), (0.3, 0.1, 0.0, 0.2, 0.1), (0.2, 0.1, 0.0), 16, 2e-3
)
_simsv2 = _settings(
  (30, 6, 4), (5, 3, 1), (0.5, 0.2, 0.1, 0.0, 0.3), (0.1, 0.2, 0.0), 16, 5e-4
)


def _paper(config):
  presets.mmsa(config)
  config.optim.update({"grad_clip_value": 0.6, "accumulate_steps": 8})
  config.optim.accumulation = "sum"


def _original(config):
  presets.published(config)
  _settings(
    (30, 5, 5), (1, 1, 1), (0.25, 0.25, 0.1, 0.1, 0.0), (0.1, 0.0, 0.0), 24, 1e-3
  )(config)
  config.model.update({"positions": True, "compat": "mmsa"})
  config.optim.update({"grad_clip_norm": 0.8, "epochs": 40, "patience": 0})


VARIANTS = {
  "mosi": _mosi,
  "mosei": _mosei,
  "sims": _sims,
  "simsv2": _simsv2,
  "own": _mosi,
  "iemocap": presets.iemocap,
  "paper": _paper,
  "original": _original,
  **presets.SHARED,
}
DATA_SETS = ("mosi", "mosei", "sims", "simsv2", "iemocap", "own")
