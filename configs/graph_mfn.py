"""Graph-MFN: memory fusion over a graph of modalities (Zadeh et al., ACL 2018).

  python -m msa_jax.main --config=configs/graph_mfn.py
  python -m msa_jax.main --config=configs/graph_mfn.py:mosi --config.data.path=mosi.pkl

Modalities must have the text's steps: aligned data, or `data.align=pool` (the default).
Variants: `mosi`, `mosei`, `sims`, `simsv2` (MMSA's settings), `own` (data of your own:
as `mosi`), `iemocap`, `paper` (MMSA's way of reading padding, its optimizer, and the
networks of the graph's nodes that never train), `sgd`, `one_strong` (a synthetic corpus
whose text says nearly everything), `one_fast` (one whose text is learned first).
Published (MMSA): MOSI MAE .956, Corr .649; MOSEI MAE .575, Corr .713.
"""

import ml_collections

from msa_jax import config as config_lib
from msa_jax.config import presets
from msa_jax.models.mfn import graph_mfn

_PARTS = ("candidate", "retain", "update", "output")


def get_config(variants: str = "") -> ml_collections.ConfigDict:
  """Builds the config; `variants` are comma-separated names of `VARIANTS`."""
  chosen = config_lib.parse_variants(variants, VARIANTS, DATA_SETS)
  config = presets.late_fusion(graph_mfn.options(), balance=False)
  config.model.hidden_dims.update({"text": 64, "audio": 16, "vision": 16})
  config.model.update({"memory_dim": 64, "node_dim": 32})
  config.model.mlp_dims.update({"retain": 64, "output": 64})
  config.optim.epochs = 25
  return presets.apply(config, chosen, VARIANTS, DATA_SETS)


def _settings(hidden, memory_dim, node_dim, mlp, dropout, batch_size, rate, decay):
  def apply(config):
    modalities = ("text", "audio", "vision")
    config.model.hidden_dims.update(dict(zip(modalities, hidden, strict=True)))
    config.model.update({"memory_dim": memory_dim, "node_dim": node_dim})
    config.model.mlp_dims.update(dict(zip(_PARTS, mlp, strict=True)))
    config.model.dropout.update(dict(zip(_PARTS, dropout, strict=True)))
    config.optim.update({"batch_size": batch_size, "learning_rate": rate})
    config.optim.weight_decay = decay

  return apply


_mosi = _settings(
  (256, 32, 256), 300, 64, (32, 128, 64, 256), (0.0, 0.5, 0.5, 0.0), 32, 2e-3, 5e-3
)
VARIANTS = {
  "mosi": _mosi,
  "mosei": _settings(
    (64, 16, 64), 300, 128, (32, 64, 256, 128), (0.5, 0.0, 0.7, 0.7), 64, 2e-3, 1e-3
  ),
  "sims": _settings(
    (256, 32, 256), 64, 128, (256, 32, 32, 256), (0.5, 0.2, 0.7, 0.2), 64, 5e-4, 1e-3
  ),
  "simsv2": _settings(
    (64, 16, 64), 400, 32, (32, 256, 256, 256), (0.7, 0.5, 0.2, 0.2), 32, 2e-3, 0.0
  ),
  "own": _mosi,
  "iemocap": presets.iemocap,
  "paper": presets.mmsa_decayed,
  **presets.SHARED,
}
DATA_SETS = ("mosi", "mosei", "sims", "simsv2", "iemocap", "own")
