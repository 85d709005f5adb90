"""MFN: memory fusion network (Zadeh et al., AAAI 2018, arXiv:1802.00927).

  python -m msa_jax.main --config=configs/mfn.py
  python -m msa_jax.main --config=configs/mfn.py:mosi --config.data.path=mosi.pkl

Modalities must have the text's steps: aligned data, or `data.align=pool` (the default).
Variants: `mosi`, `mosei`, `sims`, `simsv2` (MMSA's settings), `own` (data of your own:
as `mosi`), `iemocap`, `paper` (MMSA's way of reading padding and its optimizer), `sgd`,
`one_strong` (a synthetic corpus whose text says nearly everything), `one_fast` (one
whose text is learned first). Published (the paper, other features): MOSI MAE .965,
Corr .632.
"""

import ml_collections

from msa_jax import config as config_lib
from msa_jax.config import presets
from msa_jax.models.mfn import mfn


def get_config(variants: str = "") -> ml_collections.ConfigDict:
  """Builds the config; `variants` are comma-separated names of `VARIANTS`."""
  chosen = config_lib.parse_variants(variants, VARIANTS, DATA_SETS)
  config = presets.late_fusion(mfn.options(), balance=False)
  config.model.hidden_dims.update({"text": 64, "audio": 16, "vision": 16})
  config.model.memory_dim = 64
  config.model.mlp_dims.update({"retain": 64, "output": 64})
  config.optim.epochs = 25
  return presets.apply(config, chosen, VARIANTS, DATA_SETS)


def _settings(hidden, memory_dim, mlp, dropout, batch_size, rate, decay):
  def apply(config):
    modalities = ("text", "audio", "vision")
    config.model.hidden_dims.update(dict(zip(modalities, hidden, strict=True)))
    config.model.memory_dim = memory_dim
    config.model.mlp_dims.update(dict(zip(mfn.PARTS, mlp, strict=True)))
    config.model.dropout.update(dict(zip(mfn.PARTS, dropout, strict=True)))
    config.optim.update({"batch_size": batch_size, "learning_rate": rate})
    config.optim.weight_decay = decay

  return apply


_mosi = _settings(
  (256, 32, 256), 400, (32, 64, 256, 32, 128), (0.2, 0.0, 0.7, 0.5, 0.0), 128, 2e-3, 0.0
)
VARIANTS = {
  "mosi": _mosi,
  "mosei": _settings(
    (128, 32, 128),
    128,
    (128, 128, 256, 256, 128),
    (0.2, 0.5, 0.7, 0.0, 0.5),
    64,
    5e-4,
    1e-4,
  ),
  "sims": _settings(
    (64, 16, 64), 64, (128, 128, 64, 64, 64), (0.2, 0.0, 0.2, 0.7, 0.7), 32, 1e-3, 0.0
  ),
  "simsv2": _settings(
    (128, 16, 128), 400, (32, 128, 32, 32, 64), (0.2, 0.5, 0.5, 0.2, 0.2), 64, 1e-3, 0.0
  ),
  "own": _mosi,
  "iemocap": presets.iemocap,
  "paper": presets.mmsa_decayed,
  **presets.SHARED,
}
DATA_SETS = ("mosi", "mosei", "sims", "simsv2", "iemocap", "own")
