"""Recipes by what a run's text input is: the right training differs between them.

  frozen    features, of the file or of an encoder that stays as it is: what the config
            file says, tuned for it
  tuned     a pretrained encoder trained along: few epochs, light regularisation, since
            what the encoder knows is worth more than what a thousand samples teach
  scratch   an encoder that starts from random values

`follow` makes the fields of `RECIPES` lazy: as long as nobody sets one, it has the
value that goes with `config.text`, whatever that is set to later. Who sets a field, by
a flag, in Python or in a file, has set it (`FieldReference.set` of ml_collections),
also to the value that the file has. `config.train.preset` chooses a recipe by hand, or
`none`, the file's own values; variants that are a paper's settings do so.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections

from msa_jax.config.config_dict import ConfigDict

REGIMES = ("frozen", "tuned", "scratch")
PRESETS = ("auto", "none", *REGIMES)

# Regime -> dotted key -> value. One place for each regime, the anchor included.
RECIPES: Mapping[str, Mapping[str, Any]] = {
  "frozen": {"anchor.to": "none", "init.text_head": "linear"},
  # A fine-tuned MiniLM with these reaches MAE .787 on MOSI with a linear head, .770
  # in PyTorch. The best epoch by validation is kept, so none is given up early.
  # Heads start at random: as the linear model of the untrained encoder they make the
  # first epochs good enough to be selected before the encoder has learned.
  "tuned": {
    "anchor.to": "auto",
    "init.text_head": "random",
    "text.learning_rate": 5e-5,
    "optim.name": "adamw",
    "optim.weight_decay": 0.01,
    "optim.ema_decay": 0.0,
    "optim.warmup_fraction": 0.1,
    "optim.schedule": "linear",
    "optim.grad_clip_norm": 1.0,
    "optim.batch_size": 32,
    "optim.epochs": 8,
    "optim.patience": 0,
  },
  "scratch": {
    "anchor.to": "none",
    "init.text_head": "random",
    "text.learning_rate": 3e-4,
    "optim.name": "adamw",
    "optim.weight_decay": 0.01,
    "optim.warmup_fraction": 0.1,
    "optim.schedule": "linear",
    "optim.grad_clip_norm": 1.0,
    "optim.epochs": 20,
    "optim.patience": 6,
  },
}
# What the fields above follow.
DECIDE = ("train.preset", "text.input", "text.finetune", "text.start")
# Rate of every dropout of the network, where an encoder is trained.
DROPOUT = {"tuned": 0.1, "scratch": 0.3}
_RATES = ("model.dropout", "model.post_dropout")


def regime_of(preset: str, is_encoded: bool, finetune: str, start: str) -> str:
  """The regime that a run is in, one of `REGIMES`, or `none`.

  Args:
    preset: `config.train.preset`.
    is_encoded, finetune, start: `config.text`; what does not fit is refused later.
  """
  if preset != "auto":
    return preset
  if not is_encoded or finetune.lower() in ("none", "false"):
    return "frozen"
  return "scratch" if start == "scratch" else "tuned"


class _Choose(NamedTuple):
  """An operation of a `FieldReference`: the regime's value, or the file's own."""

  by_regime: Mapping[str, Any]
  args: tuple[Any, ...]

  def fn(self, own: Any, preset: str, source: str, finetune: Any, start: str) -> Any:
    regime = regime_of(preset, source == "encoder", str(finetune), start)
    return self.by_regime.get(regime, own)


def follow(
  config: ConfigDict,
  recipes: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
  """Makes fields of an unlocked config follow its text input.

  Args:
    config: with the file's own values; changed in place.
    recipes: regime -> dotted key -> value, of one system; they go before `RECIPES`.
  """
  found: dict[str, dict[str, Any]] = {}
  rates = [path for group in _RATES for path in _rates(config, group)]
  for regime in REGIMES:
    chosen = dict.fromkeys(rates, DROPOUT[regime]) if regime in DROPOUT else {}
    chosen |= {**RECIPES[regime], **(recipes or {}).get(regime, {})}
    for path, value in chosen.items():
      found.setdefault(path, {})[regime] = value
  config.train.preset = "auto"
  decide = []
  for path in DECIDE:
    section, key = path.split(".")
    decide.append(config[section].get_ref(key))
  for path, by_regime in found.items():
    *sections, key = path.split(".")
    node = config
    for section in sections:
      node = node[section]
    own = node[key]
    del node[key]
    node[key] = ml_collections.FieldReference(own, op=_Choose(by_regime, tuple(decide)))


def _rates(config: ConfigDict, path: str) -> list[str]:
  """Dotted keys of the rates at or under a key, where a config has it."""
  section, key = path.split(".")
  value = config[section].get(key)
  if isinstance(value, ConfigDict):
    return [f"{path}.{name}" for name in value]
  return [] if value is None else [path]
