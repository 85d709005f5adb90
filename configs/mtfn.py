"""MTFN: TFN whose modalities predict labels of their own (Yu et al., ACL 2020).

  python -m msa_jax.main --config=configs/mtfn.py
  python -m msa_jax.main --config=configs/mtfn.py:sims --config.data.path=sims.pkl

Needs a corpus with labels of each modality, as CH-SIMS has; without them train
`tfn`. Variants: `sims`, `simsv2` (MMSA's settings), `own` (data of your own: as
`sims`), `paper` (MMSA's way of reading padding and its optimizer), `sgd`. Published
(MMSA): SIMS MAE .395, Corr .666.
"""

import ml_collections

from msa_jax import config as config_lib
from msa_jax.config import presets
from msa_jax.models.late_fusion import multitask


def get_config(variants: str = "") -> ml_collections.ConfigDict:
  """Builds the config; `variants` are comma-separated names of `VARIANTS`."""
  chosen = config_lib.parse_variants(variants, VARIANTS, DATA_SETS)
  model = multitask.options("mtfn", multitask.MTFN)
  config = presets.late_fusion(model, multitask.losses())
  presets.unimodal_labels(config)
  # The product of MMSA's widths has two million entries; the default is narrower.
  config.model.hidden_dims.update({"text": 64, "audio": 16, "vision": 16})
  config.model.update({"text_dim": 16, "post_dim": 32})
  return presets.apply(config, chosen, VARIANTS, DATA_SETS, presets.POOLED_TEXT)


def _sims(config):
  config.model.hidden_dims.update({"text": 256, "audio": 32, "vision": 256})
  config.model.update({"text_dim": 256, "post_dim": 64, "post_dropout": 0.2})
  config.model.unimodal_dims.update({"text": 64, "audio": 4, "vision": 8})
  presets.same_rates(config, dropout=0.2, unimodal_dropout=0.2)
  presets.task_weights(config, 0.6, 0.4, 0.0, 1.0)
  config.optim.update({"batch_size": 64, "learning_rate": 5e-3})
  config.optim.weight_decay = 0.0
  config.optim.weight_decays.update({"text": 1e-3, "audio": 1e-4, "vision": 1e-5})


def _simsv2(config):
  config.model.hidden_dims.update({"text": 64, "audio": 16, "vision": 64})
  config.model.update({"text_dim": 32, "post_dim": 64, "post_dropout": 0.5})
  config.model.unimodal_dims.update({"text": 16, "audio": 5, "vision": 64})
  presets.same_rates(config, dropout=0.3, unimodal_dropout=0.5)
  presets.task_weights(config, 1.0, 0.4, 0.4, 0.8)
  config.optim.update({"batch_size": 32, "learning_rate": 5e-4})
  config.optim.weight_decay = 0.0
  config.optim.weight_decays.update({"text": 1e-5, "audio": 1e-4, "vision": 1e-4})


VARIANTS = {
  "sims": _sims,
  "simsv2": _simsv2,
  "own": _sims,
  "paper": presets.mmsa_decayed,
  "sgd": presets.sgd,
}
DATA_SETS = ("sims", "simsv2", "own")
