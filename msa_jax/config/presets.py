"""What config files share: how variants are applied, and settings of late fusion.

Each function but `late_fusion` and `apply` changes an unlocked config in place, as a
variant does.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ml_collections

from msa_jax import config as config_lib
from msa_jax.config import files, regimes
from msa_jax.config.config_dict import ConfigDict
from msa_jax.data.synthetic.generator import ONE_FAST, ONE_STRONG
from msa_jax.typing import MODALITIES

# Variants that say how a paper, or its code, trains: never changed by a recipe.
LITERAL = ("paper", "paper_min", "official", "original")
# Frozen features of real corpora: text says most, and there are a thousand samples. The
# synthetic corpus is learned from all its modalities alike.
ANCHORED = {"anchor.to": "auto"}
# A pretrained encoder has read the sequence: a recurrent network on top of it learns
# from a thousand samples what the mean of the states already says.
POOLED_TEXT = {"tuned": {"model.text_encoder": "mean"}}


def late_fusion(
  model: Mapping[str, Any] | ml_collections.ConfigDict,
  loss: Mapping[str, Any] | None = None,
  balance: bool = True,
) -> ConfigDict:
  """Shared defaults: sequences aligned with the text, length buckets, AdamW, 50 epochs.

  Args:
    model: options of the system.
    loss: options of its objective; None = the usual ones.
    balance: whether the system can be balanced by B-fusion.
  """
  config = config_lib.base(model, loss, balance=balance)
  config.data.update({"align": "pool", "max_steps": 50, "buckets": 4})
  config.optim.update({"name": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-3})
  config.optim.update(
    {"grad_clip_norm": 1.0, "epochs": 50, "batch_size": 32, "patience": 8}
  )
  return config


def apply(
  config: ConfigDict,
  chosen: tuple[str, ...],
  variants: Mapping[str, Callable[[ConfigDict], None]],
  data_sets: Collection[str] = (),
  recipes: Mapping[str, Mapping[str, Any]] | None = None,
  anchored: bool = False,
) -> ConfigDict:
  """Applies chosen variants (see `parse_variants`), makes the config follow its text
  input (`config/regimes.py`), and locks it.

  What settings of a data set say is of frozen features, and gives way to the recipe of
  another text input; what other variants say was asked for, and stays.

  Args:
    config: unlocked.
    chosen: names of variants.
    variants: name -> what changes the config in place.
    data_sets: those that are settings of a data set.
    recipes: regime -> dotted key -> value, where this system differs from others.
    anchored: a data set's settings are in the config already, without a variant here.
  """
  of_data_set = [name for name in chosen if name in data_sets]
  for name in of_data_set:
    variants[name](config)
    config.data.recipe = "" if name == files.OWN else name
  found = {name: dict(values) for name, values in (recipes or {}).items()}
  if of_data_set or anchored:
    found["frozen"] = {**ANCHORED, **found.get("frozen", {})}
  regimes.follow(config, found)
  for name in chosen:
    if name not in data_sets:
      variants[name](config)
  if set(chosen) & set(LITERAL):
    config.train.preset = "none"
  return config_lib.finish(config)


def iemocap(config: ConfigDict) -> None:
  """Four yes/no emotions, sequences of 20 steps, AWF's batch."""
  config.model.task = "emotion"
  config.data.max_steps = 20
  config.optim.batch_size = 24


def sgd(config: ConfigDict) -> None:
  """AWF's table 7: momentum in place of Adam for the network."""
  config.optim.update({"name": "sgd", "momentum": 0.9, "learning_rate": 0.05})
  config.optim.update({"weight_decay": 0.0, "schedule": "cosine"})


def one_strong(config: ConfigDict) -> None:
  """A synthetic corpus whose text says nearly everything (`ONE_STRONG`)."""
  config.data.synthetic.update(dataclasses.asdict(ONE_STRONG))


def one_fast(config: ConfigDict) -> None:
  """A synthetic corpus whose text is learned before the rest
  (`ONE_FAST`), and a training that ends before the rest has caught up."""
  config.data.synthetic.update(dataclasses.asdict(ONE_FAST))
  config.optim.epochs = 8


def published(config: ConfigDict) -> None:
  """Only what papers of this family state: sequences as long as they come, plain Adam
  with a constant rate."""
  config.data.update({"align": "none", "max_steps": 0})
  config.optim.update({"name": "adam", "weight_decay": 0.0, "grad_clip_norm": 0.0})
  config.optim.update({"warmup_fraction": 0.0, "schedule": "constant"})


def mmsa(config: ConfigDict) -> None:
  """`published`, and MMSA's way of reading padding."""
  published(config)
  config.model.compat = "mmsa"


def mmsa_decayed(config: ConfigDict) -> None:
  """`mmsa`, with the weight decay that the config has, as a part of the gradient."""
  decay = config.optim.weight_decay
  mmsa(config)
  config.optim.weight_decay = decay


def mmsa_sizes(
  config: ConfigDict,
  audio: int,
  text_dim: int,
  post_dim: int,
  dropout: float,
  post_dropout: float,
) -> None:
  """Widths and rates of LF-DNN and TFN in MMSA; text and vision have 128 units.

  Args:
    config: of one of the two.
    audio: units of the audio network.
    text_dim: width of the text's features.
    post_dim: units of the layers after fusion.
    dropout: rate of every modality.
    post_dropout: rate after fusion.
  """
  config.model.hidden_dims.update({"text": 128, "audio": audio, "vision": 128})
  config.model.update({"text_dim": text_dim, "post_dim": post_dim})
  for name in config.model.dropout:
    config.model.dropout[name] = dropout
  config.model.post_dropout = post_dropout


def unimodal_labels(config: ConfigDict, *others: str) -> None:
  """A synthetic corpus with labels of each modality, and optimizer partitions of the
  modalities' networks, and others, which learn at the common rate until another is
  set."""
  alone = tuple(f"sentiment_{name}" for name in MODALITIES)
  config.data.synthetic.tasks = ("sentiment", *alone)
  for name in (*MODALITIES, *others):
    # A reference of its own: who sets one of them sets no other.
    config.optim.learning_rates[name] = config.optim.get_ref("learning_rate") * 1.0


def same_rates(config: ConfigDict, **rates: float) -> None:
  """Sets all entries of groups of dropout rates: group -> rate."""
  for group, rate in rates.items():
    for name in config.model[group]:
      config.model[group][name] = rate


def task_weights(
  config: ConfigDict, multimodal: float, text: float, audio: float, vision: float
) -> None:
  """Weights of the losses of the common label and of each modality's own."""
  config.loss.update({"multimodal_weight": multimodal, "text_weight": text})
  config.loss.update({"audio_weight": audio, "vision_weight": vision})


# Variants that every late-fusion system has, after those of data sets and papers.
SHARED = {"sgd": sgd, "one_strong": one_strong, "one_fast": one_fast}
# Those of MMSA's systems.
MMSA = {"iemocap": iemocap, "paper": mmsa, **SHARED}
