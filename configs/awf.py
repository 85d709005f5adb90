"""AWF: adaptive weight fusion (Journal of Software 2024, 35(10):4781-4793).

  python -m msa_jax.main --config=configs/awf.py
  python -m msa_jax.main --config=configs/awf.py:mosi --config.data.path=mosi.pkl

Variants: `mosi`, `mosei`, `sims`, `iemocap` (sizes, batch and dropout of the paper's
table 2), `own` (data of your own: MOSI's row), `paper` (with it the paper's learning
rate and patience, no weight decay, no clipping, no scaled updates, the literal loss of
the fusion weights; MOSI's if no data set is named), `sgd` (table 7), `one_strong` (a
synthetic corpus whose text says nearly everything), `one_fast` (one whose text is
learned first, and eight epochs: audio and vision learn more with B-fusion). They
combine: `configs/awf.py:mosei,paper`.

  python -m msa_jax.studies balance --config=configs/awf.py:one_fast,sgd \\
    --config.replicas.seeds=0,1,2,3,4 --workdir=studies/awf

The default is a narrow network on the synthetic corpus.
`--config.model.attention_fusion=False` leaves A-fusion out,
`--config.balance.enabled=False` B-fusion. Published: MOSI MAE .716, Corr .791; MOSEI
MAE .535, Corr .770 (with a fine-tuned BERT, not the frozen features used here).
"""

from typing import NamedTuple

import ml_collections

from msa_jax import config as config_lib
from msa_jax.config import presets
from msa_jax.models.late_fusion import awf


class Row(NamedTuple):
  """A column of the paper's table 2, and the longest sequence kept."""

  feature_dim: int
  post_dim: int
  dropout: float
  batch_size: int
  learning_rate: float
  patience: int
  max_steps: int = 50


TABLE_2 = {
  "mosi": Row(256, 128, 0.0, 64, 1e-4, 20),
  "mosei": Row(128, 128, 0.4, 64, 1e-5, 1),
  "sims": Row(128, 64, 0.0, 16, 1e-5, 8),
  "iemocap": Row(256, 128, 0.4, 24, 1e-4, 8, 20),
}
TABLE_2["own"] = TABLE_2["mosi"]
VARIANTS = dict.fromkeys((*TABLE_2, "paper", *presets.SHARED))
DATA_SETS = tuple(TABLE_2)


def get_config(variants: str = "") -> ml_collections.ConfigDict:
  """Builds the config; `variants` are comma-separated names of `VARIANTS`."""
  chosen = config_lib.parse_variants(variants, VARIANTS, DATA_SETS)
  config = presets.late_fusion(awf.options())
  config.model.update({"feature_dim": 64, "post_dim": 64, "dropout": 0.2})
  config.balance.enabled = True
  data_set = next((name for name in chosen if name in TABLE_2), None)
  if data_set:
    _table2(config, TABLE_2[data_set])
  if data_set == "iemocap":
    config.model.task = "emotion"
  variants = {"paper": lambda config: _paper(config, TABLE_2[data_set or "mosi"])}
  others = tuple(name for name in chosen if name not in TABLE_2)
  variants |= presets.SHARED
  return presets.apply(
    config, others, variants, recipes=presets.POOLED_TEXT, anchored=bool(data_set)
  )


def _table2(config, row):
  config.model.update({"feature_dim": row.feature_dim, "post_dim": row.post_dim})
  config.model.dropout = row.dropout
  config.optim.batch_size = row.batch_size
  config.data.max_steps = row.max_steps
  config.text.learning_rate = min(row.learning_rate, 5e-5)


def _paper(config, row):
  _table2(config, row)
  config.model.text_encoder = "bert_cls"
  presets.published(config)
  config.optim.update({"learning_rate": row.learning_rate, "patience": row.patience})
  config.text.learning_rate = row.learning_rate
  config.balance.scale_updates_by_omega = "false"
  config.balance.omega_loss = "literal"
