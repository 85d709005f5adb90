"""MMoLRE: mixture of low-rank experts for sentiment and emotion (ICME 2025).

  python -m msa_jax.main --config=configs/mmolre.py
  python -m msa_jax.main --config=configs/mmolre.py:iemocap --config.data.path=ie.npz
  python -m msa_jax.main --config=configs/mmolre.py:mosi --config.data.path=mosi.npz \\
    --config.data.extra_train_paths=mosei.npz

Variants: `mosei`, `mosi`, `iemocap`, `meld`, `sims` (settings per data set; the paths
are yours to give), `own` (data of your own: the epochs of `paper` at the default's
width) and `paper` (width 768, 12.9 M parameters; made for an accelerator).
They combine: `configs/mmolre.py:mosei,paper`. MOSI has no emotion labels: with
`data.extra_train_paths=mosei.npz` batches draw from both corpora equally and the
emotion head learns from MOSEI; without, sentiment is learned alone. `conflict` is a
synthetic corpus whose two tasks need different things of one text, and more than they
share: `msa-jax studies ablation --config=mmolre:conflict --table=sharing`.

The default trains a narrow preset of the same network on the synthetic corpus with both
of its labels, which needs no file and no accelerator. Only the paper's abstract is
public; `msa_jax/models/mmolre/system.py` says what it states and what is ours. It names
no figure to compare with.
"""

import ml_collections

from msa_jax import config as config_lib
from msa_jax.config import presets
from msa_jax.models import mmolre


def get_config(variants: str = "") -> ml_collections.ConfigDict:
  """Builds the config; `variants` are comma-separated names of `VARIANTS`."""
  chosen = config_lib.parse_variants(variants, VARIANTS, DATA_SETS)
  config = config_lib.base(mmolre.options(), loss=mmolre.losses())
  config.data.synthetic.tasks = ("sentiment", "emotion")
  config.text.learning_rate = 1e-5
  config.optim.update(
    {
      "name": "adamw",
      "learning_rate": 1e-4,
      "weight_decay": 1e-2,
      "schedule": "cosine",
      "grad_clip_norm": 1.0,
      "epochs": 30,
      "patience": 6,
    }
  )
  if "paper" not in chosen:
    _small(config)
  return presets.apply(config, chosen, VARIANTS, DATA_SETS)


def _small(config):
  # The same network at an eighth of the width, with ranks to match.
  config.model.update(
    {
      "hidden_dim": 96,
      "shared_ranks": (4, 8, 16, 32),
      "task_rank": 16,
      "ffn_dim": 128,
      "head_hidden_dim": 64,
    }
  )
  config.optim.update({"learning_rate": 1e-3, "epochs": 10})
  config.data.align = "pool"
  config.data.max_steps = 32


def _paper(config):
  config.data.max_steps = 50


def _mosei(config):
  # Sentiment in [-3, 3] and, where the file has them, six yes/no emotions.
  config.data.max_steps = 50
  config.loss.update({"sentiment": "l1", "emotion": "bce"})


def _mosi(config):
  config.data.max_steps = 50
  config.loss.sentiment = "l1"


def _iemocap(config):
  # One of four emotions; sentiment is the valence rating.
  config.data.valence = True
  config.loss.update({"sentiment": "l1", "emotion": "cross_entropy"})
  if config.model.hidden_dim < 768:
    # One vector per utterance soon overfits.
    config.model.dropout = 0.3
    config.optim.weight_decay = 0.1


def _meld(config):
  # Seven emotions and three sentiments, both classes, from transcripts.
  config.model.modalities = ("text",)
  config.loss.update({"sentiment": "cross_entropy", "emotion": "cross_entropy"})
  config.data.max_steps = 50


def _own(config):
  config.data.max_steps = 50
  config.optim.epochs = 30


def _sims(config):
  config.data.max_steps = 50  # 39 tokens; sentiment only, labels in [-1, 1]
  config.loss.sentiment = "l1"


def _conflict(config):
  # One block, whose few ranks are all that either task has.
  presets.conflict(config)
  config.data.update({"align": "none", "standardize": ()})
  config.model.update({"modalities": ("text",), "hidden_dim": 16, "num_heads": 2})
  config.model.update({"num_blocks": 1, "shared_ranks": (2,), "task_rank": 4})
  config.model.update({"dropout": 0.0, "kernel_size": 1})
  config.optim.update({"learning_rate": 1e-2, "weight_decay": 0.0, "epochs": 40})
  config.optim.patience = 0


VARIANTS = {
  "conflict": _conflict,
  "mosei": _mosei,
  "mosi": _mosi,
  "iemocap": _iemocap,
  "meld": _meld,
  "sims": _sims,
  "own": _own,
  "paper": _paper,
}
DATA_SETS = ("mosei", "mosi", "iemocap", "meld", "sims", "own")
