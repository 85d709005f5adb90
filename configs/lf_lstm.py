"""LF-LSTM: late fusion of one LSTM per modality (host of AWF's tables 1 and 3).

  python -m msa_jax.main --config=configs/lf_lstm.py
  python -m msa_jax.main --config=configs/lf_lstm.py:mosi --config.data.path=mosi.pkl
  python -m msa_jax.main --config=configs/lf_lstm.py --config.balance.enabled=True

Variants: `mosi`, `mosei`, `sims`, `iemocap` (width, batch and dropout of AWF's table
2), `own` (data of your own: MOSI's row), `paper` (its learning rate for MOSI, unaligned
sequences), `sgd`, `one_strong` (a synthetic corpus whose text says nearly everything),
`one_fast` (one whose text is learned first). Published (AWF): MOSI Acc-2 .748, with
B-fusion .774.
"""

import ml_collections

from msa_jax import config as config_lib
from msa_jax.config import presets
from msa_jax.models.late_fusion import lf_lstm


def get_config(variants: str = "") -> ml_collections.ConfigDict:
  """Builds the config; `variants` are comma-separated names of `VARIANTS`."""
  chosen = config_lib.parse_variants(variants, VARIANTS, DATA_SETS)
  config = presets.late_fusion(lf_lstm.options())
  return presets.apply(config, chosen, VARIANTS, DATA_SETS)


def _table2(feature_dim, post_dim, dropout, batch_size):
  def apply(config):
    config.model.update({"feature_dim": feature_dim, "post_dim": post_dim})
    for name in config.model.dropout:
      config.model.dropout[name] = dropout
    config.model.post_dropout = dropout
    config.optim.batch_size = batch_size

  return apply


def _iemocap(config):
  presets.iemocap(config)
  _table2(256, 128, 0.4, 24)(config)


def _paper(config):
  presets.published(config)
  config.optim.learning_rate = 1e-4


VARIANTS = {
  "mosi": _table2(256, 128, 0.0, 64),
  "mosei": _table2(128, 128, 0.4, 64),
  "sims": _table2(128, 64, 0.0, 16),
  "iemocap": _iemocap,
  "own": _table2(256, 128, 0.0, 64),
  "paper": _paper,
  **presets.SHARED,
}
DATA_SETS = ("mosi", "mosei", "sims", "iemocap", "own")
