"""MLF-DNN: LF-DNN whose modalities predict labels of their own (Yu et al., ACL 2020).

  python -m msa_jax.main --config=configs/mlf_dnn.py
  python -m msa_jax.main --config=configs/mlf_dnn.py:sims --config.data.path=sims.pkl

Needs a corpus with labels of each modality, as CH-SIMS has; without them train
`lf_dnn`. Variants: `sims`, `simsv2` (MMSA's settings), `own` (data of your own: as
`sims`), `paper` (MMSA's way of reading padding and its optimizer), `sgd`. Published
(MMSA): SIMS MAE .396, Corr .665.
"""

import ml_collections

from msa_jax import config as config_lib
from msa_jax.config import presets
from msa_jax.models.late_fusion import multitask


def get_config(variants: str = "") -> ml_collections.ConfigDict:
  """Builds the config; `variants` are comma-separated names of `VARIANTS`."""
  chosen = config_lib.parse_variants(variants, VARIANTS, DATA_SETS)
  model = multitask.options("mlf_dnn", multitask.MLFDNN)
  config = presets.late_fusion(model, multitask.losses())
  presets.unimodal_labels(config)
  return presets.apply(config, chosen, VARIANTS, DATA_SETS, presets.POOLED_TEXT)


def _sims(config):
  config.model.hidden_dims.update({"text": 64, "audio": 32, "vision": 64})
  config.model.update({"text_dim": 32, "post_dim": 32, "post_dropout": 0.5})
  config.model.unimodal_dims.update({"text": 16, "audio": 4, "vision": 32})
  presets.same_rates(config, dropout=0.3, unimodal_dropout=0.5)
  presets.task_weights(config, 0.6, 0.2, 0.8, 0.8)
  config.optim.update({"batch_size": 32, "learning_rate": 2e-3})
  config.optim.weight_decay = 0.0
  config.optim.weight_decays.update({"text": 1e-4, "audio": 1e-3, "vision": 1e-4})


def _simsv2(config):
  config.model.hidden_dims.update({"text": 128, "audio": 32, "vision": 128})
  config.model.update({"text_dim": 32, "post_dim": 64, "post_dropout": 0.3})
  config.model.unimodal_dims.update({"text": 32, "audio": 4, "vision": 64})
  presets.same_rates(config, dropout=0.2, unimodal_dropout=0.3)
  presets.task_weights(config, 0.8, 1.0, 0.6, 0.8)
  config.optim.update({"batch_size": 64, "learning_rate": 5e-3})
  config.optim.weight_decay = 1e-4
  config.optim.weight_decays.update({"text": 0.0, "audio": 1e-5, "vision": 1e-5})


VARIANTS = {
  "sims": _sims,
  "simsv2": _simsv2,
  "own": _sims,
  "paper": presets.mmsa_decayed,
  "sgd": presets.sgd,
}
DATA_SETS = ("sims", "simsv2", "own")
