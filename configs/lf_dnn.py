"""LF-DNN: late fusion of dense networks (MMSA's; host of AWF's tables 1 and 3).

  python -m msa_jax.main --config=configs/lf_dnn.py
  python -m msa_jax.main --config=configs/lf_dnn.py:mosi --config.data.path=mosi.pkl
  python -m msa_jax.main --config=configs/lf_dnn.py --config.balance.enabled=True

Variants: `mosi`, `mosei`, `sims` (MMSA's settings), `own` (data of your own: as
`mosi`), `iemocap`, `paper` (MMSA's way of reading padding, its optimizer), `sgd`,
`one_strong` (a synthetic corpus whose text says nearly everything), `one_fast` (one
whose text is learned first). Published (AWF): MOSI Acc-2 .767, with B-fusion .794.
"""

import ml_collections

from msa_jax import config as config_lib
from msa_jax.config import presets
from msa_jax.models.late_fusion import lf_dnn


def get_config(variants: str = "") -> ml_collections.ConfigDict:
  """Builds the config; `variants` are comma-separated names of `VARIANTS`."""
  chosen = config_lib.parse_variants(variants, VARIANTS, DATA_SETS)
  config = presets.late_fusion(lf_dnn.options())
  return presets.apply(config, chosen, VARIANTS, DATA_SETS, presets.POOLED_TEXT)


def _mosi(config):
  presets.mmsa_sizes(config, 16, 256, 128, 0.2, 0.2)
  config.optim.update({"batch_size": 128, "learning_rate": 1e-3})


def _mosei(config):
  presets.mmsa_sizes(config, 32, 128, 128, 0.2, 0.2)
  config.optim.update({"batch_size": 64, "learning_rate": 2e-3})


def _sims(config):
  presets.mmsa_sizes(config, 32, 256, 32, 0.3, 0.5)
  config.optim.update({"batch_size": 128, "learning_rate": 5e-3})


VARIANTS = {"mosi": _mosi, "mosei": _mosei, "sims": _sims, "own": _mosi, **presets.MMSA}
DATA_SETS = ("mosi", "mosei", "sims", "iemocap", "own")
