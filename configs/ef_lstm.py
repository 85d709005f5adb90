"""EF-LSTM: early fusion, one LSTM over the modalities' features side by side.

  python -m msa_jax.main --config=configs/ef_lstm.py
  python -m msa_jax.main --config=configs/ef_lstm.py:mosi --config.data.path=mosi.pkl

Modalities must have the text's steps: aligned data, or `data.align=pool` (the default).
Variants: `mosi`, `mosei`, `sims`, `simsv2` (MMSA's settings), `own` (data of your own:
as `mosi`), `iemocap`, `paper` (MMSA's way of reading padding and its optimizer), `sgd`,
`one_strong` (a synthetic corpus whose text says nearly everything), `one_fast` (one
whose text is learned first). Published (MMSA): MOSI MAE .949, Corr .669; on SIMS its
predictions are constant.
"""

import ml_collections

from msa_jax import config as config_lib
from msa_jax.config import presets
from msa_jax.models import ef_lstm


def get_config(variants: str = "") -> ml_collections.ConfigDict:
  """Builds the config; `variants` are comma-separated names of `VARIANTS`."""
  chosen = config_lib.parse_variants(variants, VARIANTS, DATA_SETS)
  config = presets.late_fusion(ef_lstm.options(), balance=False)
  # Four layers do not learn to forget the padding of a thousand short sequences.
  config.model.update({"hidden_dim": 64, "num_layers": 1, "dropout": 0.2})
  return presets.apply(config, chosen, VARIANTS, DATA_SETS)


def _settings(hidden_dim, num_layers, dropout, batch_size, rate, decay):
  def apply(config):
    config.model.update({"hidden_dim": hidden_dim, "num_layers": num_layers})
    config.model.dropout = dropout
    config.optim.update({"batch_size": batch_size, "learning_rate": rate})
    config.optim.weight_decay = decay

  return apply


_mosi = _settings(128, 4, 0.5, 32, 1e-3, 5e-3)
VARIANTS = {
  "mosi": _mosi,
  "mosei": _settings(256, 2, 0.4, 128, 5e-3, 1e-4),
  "sims": _settings(32, 3, 0.5, 128, 5e-4, 1e-3),
  "simsv2": _settings(128, 3, 0.2, 32, 5e-4, 0.0),
  "own": _mosi,
  "iemocap": presets.iemocap,
  "paper": presets.mmsa_decayed,
  **presets.SHARED,
}
DATA_SETS = ("mosi", "mosei", "sims", "simsv2", "iemocap", "own")
