"""LMF: low-rank multimodal fusion (Liu et al., ACL 2018; MMSA's sub-networks).

  python -m msa_jax.main --config=configs/lmf.py
  python -m msa_jax.main --config=configs/lmf.py:mosi --config.data.path=mosi.pkl
  python -m msa_jax.main --config=configs/lmf.py --config.balance.enabled=True

Variants: `mosi`, `mosei`, `sims`, `simsv2` (MMSA's settings), `own` (data of your own:
as `mosi`), `iemocap`, `paper` (MMSA's way of reading padding and its optimizer), `sgd`,
`one_strong` (a synthetic corpus whose text says nearly everything), `one_fast` (one
whose text is learned first). MMSA's fourth dropout rate is of a layer that its network
does not have. Published (the paper, other features): MOSI MAE .912, Corr .668.
"""

import ml_collections

from msa_jax import config as config_lib
from msa_jax.config import presets
from msa_jax.models.late_fusion import lmf


def get_config(variants: str = "") -> ml_collections.ConfigDict:
  """Builds the config; `variants` are comma-separated names of `VARIANTS`."""
  chosen = config_lib.parse_variants(variants, VARIANTS, DATA_SETS)
  config = presets.late_fusion(lmf.options())
  config.optim.learning_rates.factors = 1e-3
  return presets.apply(config, chosen, VARIANTS, DATA_SETS, presets.POOLED_TEXT)


def _settings(text, audio, rank, dropout, batch_size, rates, decay):
  def apply(config):
    config.model.hidden_dims.update({"text": text, "audio": audio, "vision": text})
    config.model.rank = rank
    for name in config.model.dropout:
      config.model.dropout[name] = dropout
    config.optim.update({"batch_size": batch_size, "learning_rate": rates[0]})
    config.optim.learning_rates.factors = rates[1]
    config.optim.weight_decay = decay

  return apply


_mosi = _settings(128, 16, 3, 0.3, 64, (1e-3, 1e-3), 5e-3)
VARIANTS = {
  "mosi": _mosi,
  "mosei": _settings(128, 16, 4, 0.2, 32, (1e-3, 1e-3), 1e-3),
  "sims": _settings(64, 16, 4, 0.2, 64, (2e-3, 5e-4), 5e-3),
  "simsv2": _settings(64, 32, 4, 0.3, 32, (2e-3, 5e-4), 1e-4),
  "own": _mosi,
  "iemocap": presets.iemocap,
  "paper": presets.mmsa_decayed,
  **presets.SHARED,
}
DATA_SETS = ("mosi", "mosei", "sims", "simsv2", "iemocap", "own")
