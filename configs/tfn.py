"""TFN: tensor fusion network (Zadeh et al., EMNLP 2017; MMSA's sub-networks).

  python -m msa_jax.main --config=configs/tfn.py
  python -m msa_jax.main --config=configs/tfn.py:mosi --config.data.path=mosi.pkl
  python -m msa_jax.main --config=configs/tfn.py --config.balance.enabled=True

Variants: `mosi`, `mosei`, `sims` (MMSA's settings), `own` (data of your own: as
`mosi`), `iemocap`, `paper` (MMSA's way of reading padding and its optimizer), `sgd`,
`one_strong` (a synthetic corpus whose text says nearly everything), `one_fast` (one
whose text is learned first). Published (AWF): MOSI Acc-2 .753; text alone .777.
"""

import ml_collections

from msa_jax import config as config_lib
from msa_jax.config import presets
from msa_jax.models.late_fusion import tfn


def get_config(variants: str = "") -> ml_collections.ConfigDict:
  """Builds the config; `variants` are comma-separated names of `VARIANTS`."""
  chosen = config_lib.parse_variants(variants, VARIANTS, DATA_SETS)
  config = presets.late_fusion(tfn.options())
  # The product of MMSA's widths has 140,000 entries; the default is narrower.
  config.model.hidden_dims.update({"text": 64, "audio": 16, "vision": 16})
  config.model.update({"text_dim": 16, "post_dim": 32})
  return presets.apply(config, chosen, VARIANTS, DATA_SETS, presets.POOLED_TEXT)


def _mosi(config):
  presets.mmsa_sizes(config, 32, 32, 64, 0.3, 0.5)
  config.optim.update({"batch_size": 32, "learning_rate": 1e-3})


def _mosei(config):
  presets.mmsa_sizes(config, 16, 128, 16, 0.4, 0.4)
  config.optim.update({"batch_size": 128, "learning_rate": 5e-3})


def _sims(config):
  presets.mmsa_sizes(config, 32, 256, 32, 0.4, 0.4)
  config.optim.update({"batch_size": 32, "learning_rate": 5e-4})


VARIANTS = {"mosi": _mosi, "mosei": _mosei, "sims": _sims, "own": _mosi, **presets.MMSA}
DATA_SETS = ("mosi", "mosei", "sims", "iemocap", "own")
