"""What a config may say: the rules that types cannot hold, checked before a run."""

import math
import operator
from collections.abc import Mapping
from typing import Any

from msa_jax import models
from msa_jax.config import regimes
from msa_jax.config.experiment import Experiment
from msa_jax.config.options import MEMORY, DataConfig
from msa_jax.config.values import like
from msa_jax.data import missing
from msa_jax.data.transforms import dialogues
from msa_jax.errors import UserError
from msa_jax.layers.masking import POOLS
from msa_jax.text import options as text_options

ACCUMULATIONS = ("mean", "sum")  # as `step.accumulation` has them
INITIAL = ("encoder", "all")  # what `config.init.from_run` gives
# Options of several systems, by an example of what they are.
_TASKS = {"task": "auto", "tasks": ("a",), "modalities": ("a",)}
_LOSSES = {"aux_warmup_fraction": 0.0}
_LOSSES |= {name: "default" for name in ("task", "sentiment", "emotion")}
ANCHORS = ("auto", "none", "text")
TEXT_HEADS = ("linear", "random")
REPLICA_MODES = ("auto", "vmap", "sequential")
_POSITIVE = (lambda value: value > 0, "positive")
_NOT_NEGATIVE = (lambda value: value >= 0, "0 (off) or positive")
_FINITE = (lambda value: 0.0 < value < math.inf, "positive and finite")
_DECAY = (lambda value: 0.0 <= value < math.inf, "0 or more, and finite")
_SEED = (lambda value: 0 <= value < 2**31, "in [0, 2**31)")
_ABOVE_ZERO = (lambda value: 0.0 < value <= 1.0, "in (0, 1]")
_SHARE = (lambda value: 0.0 <= value <= 1.0, "in [0, 1]")
_BELOW_ONE = (lambda value: 0.0 <= value < 1.0, "in [0, 1)")
_RANGES = {
  "optim.epochs": _POSITIVE,
  "optim.batch_size": _POSITIVE,
  "train.eval_batch_size": _POSITIVE,
  "train.steps_per_call": _POSITIVE,
  "train.checkpoint_every_seconds": _FINITE,
  "optim.learning_rate": _DECAY,
  "optim.weight_decay": _DECAY,
  "optim.momentum": _BELOW_ONE,
  "data.train_fraction": _ABOVE_ZERO,
  "data.screen_level": _BELOW_ONE,
  "data.device_budget_mib": _NOT_NEGATIVE,
  "text.learning_rate": _FINITE,
  "sharding.data": _POSITIVE,
  "sharding.replica": _POSITIVE,
  "sharding.expert": _POSITIVE,
  "optim.grad_clip_norm": _DECAY,
  "optim.grad_clip_value": _DECAY,
  "optim.epsilon": _FINITE,
  "optim.accumulate_steps": _POSITIVE,
  "optim.patience": _NOT_NEGATIVE,
  "data.max_steps": _NOT_NEGATIVE,
  "data.num_frame_clusters": _NOT_NEGATIVE,
  "data.buckets": _NOT_NEGATIVE,
  "missing.seed": _SEED,
  "data.synthetic.seed": _SEED,
  "data.num_folds": _NOT_NEGATIVE,
  "replicas.most_at_once": _NOT_NEGATIVE,
  "optim.warmup_fraction": _SHARE,
  "loss.aux_warmup_fraction": _SHARE,
  "optim.ema_decay": _BELOW_ONE,
  "anchor.dropout": _BELOW_ONE,
  "anchor.scale": _FINITE,
}

_CHOICES: dict[str, tuple[str, ...]] = {
  "optim.accumulation": ACCUMULATIONS,
  "anchor.to": ANCHORS,
  "anchor.pool": tuple(POOLS),
  "replicas.mode": REPLICA_MODES,
  "init.what": INITIAL,
  "init.text_head": TEXT_HEADS,
}


def validate(config: Experiment) -> None:
  """Checks what types cannot: ranges, names and contradictions.

  Args:
    config: of a run, resolved or not.

  Raises:
    UserError: naming the value, the rule and the choices.
  """
  system = models.get(config.system)
  _check_unit(config.system, config.data, system.units)
  if not (str(config.data.fold).isdecimal() or config.data.is_cross_validated):
    raise UserError(
      f"config.data.fold={config.data.fold!r} must be the number of a session or fold,"
      " 0, or all."
    )
  text_options.check(config.text)
  _check_types({**_TASKS, **system.options}, config.model, "model")
  _check_types({**_LOSSES, **system.losses}, config.loss, "loss")
  _check_losses(config.loss)
  for path, (fits, rule) in _RANGES.items():
    value = _at(config, path)
    if not fits(value):
      raise UserError(f"config.{path}={value} must be {rule}.")
  for path, choices in _CHOICES.items():
    value = _at(config, path)
    if value not in choices:
      raise UserError(f"config.{path}={value!r} must be one of {choices}.")
  for key in ("learning_rates", "weight_decays"):
    for name, value in getattr(config.optim, key).items():
      if not 0.0 <= value < math.inf:
        raise UserError(
          f"config.optim.{key}.{name}={value} must be 0 (a rate: frozen) or more, and"
          " finite."
        )
  if config.train.preset not in regimes.PRESETS:
    raise UserError(
      f"config.train.preset={config.train.preset!r} must be one of {regimes.PRESETS}."
    )
  if config.optim.accumulate_steps > 1 and config.is_balanced:
    raise UserError(
      f"config.optim.accumulate_steps={config.optim.accumulate_steps}: B-fusion updates"
      " with every batch; set it to 1, or config.balance.enabled=False."
    )
  _check_effects(config.data)
  for key in ("train", "eval"):
    missing.parse(getattr(config.missing, key), option=f"config.missing.{key}: ")
  if config.init.from_run and config.text.start == "scratch":
    raise UserError(
      f"config.init.from_run={config.init.from_run!r} gives the encoder its values:"
      " config.text.start='scratch' must be 'pretrained'."
    )
  _check_seeds(config.replicas.seeds)


def _check_seeds(seeds: tuple[int, ...]) -> None:
  if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
    raise UserError(
      f"config.replicas.seeds={seeds} must be distinct non-negative integers, at"
      " least one."
    )
  if max(seeds) >= 2**31:
    raise UserError(f"config.replicas.seeds={seeds} must be below 2**31.")


def _check_types(
  defaults: Mapping[str, Any], values: Mapping[str, Any], path: str
) -> None:
  """Checks options against the types of their defaults; others are left to whoever
  reads them."""
  for name, default in defaults.items():
    value = values.get(name, default)
    if isinstance(default, Mapping):
      if not isinstance(value, Mapping):
        raise UserError(f"config.{path}.{name}={value!r} must be a mapping of options.")
      _check_types(default, value, f"{path}.{name}")
    else:
      like(default, value, f"{path}.{name}")


def _at(config: Experiment, path: str) -> Any:
  """The value of a dotted key; 0 for a weight that the system has not."""
  section, _, name = path.rpartition(".")
  if section == "loss":
    return config.loss.get(name, 0.0)
  return operator.attrgetter(path)(config)


def _check_losses(loss: Mapping[str, Any]) -> None:
  """Checks weights, which are numbers or, one for each question, several."""
  for name, value in loss.items():
    if isinstance(value, str):
      continue  # the name of a loss; the system knows which there are
    for weight in value if isinstance(value, list | tuple) else (value,):
      number = isinstance(weight, int | float) and not isinstance(weight, bool)
      if not number or not 0.0 <= float(weight) < math.inf:
        raise UserError(
          f"config.loss.{name}={str(value)[:60]} must be 0 or more, and finite."
        )


def _check_effects(data: DataConfig) -> None:
  """Refuses options that would do nothing, so that nobody thinks they did."""
  if data.path or data.format == MEMORY:
    return
  given = [f"features.{name}" for name, path in data.features.items() if path]
  given += ["format"] if data.format != "auto" else []
  for name in given:
    raise UserError(
      f"config.data.{name} has no effect without config.data.path, the file that it"
      " goes with: the synthetic corpus would be used."
    )


def _check_unit(system: str, data: DataConfig, units: tuple[str, ...]) -> None:
  if data.sample_unit not in dialogues.UNITS:
    raise UserError(
      f"config.data.sample_unit={data.sample_unit!r} must be one of {dialogues.UNITS}."
    )
  if data.train_fraction != 1.0 and (
    data.sample_unit == "dialogue" or data.extra_train_paths
  ):
    raise UserError(
      f"config.data.train_fraction={data.train_fraction} shrinks one file of"
      f" utterances: it"
      " must be 1.0 with config.data.sample_unit='dialogue' or config.data.joint."
    )
  if data.sample_unit not in units:
    raise UserError(
      f"config.data.sample_unit={data.sample_unit!r}: {system} reads"
      f" samples that are one"
      f" {' or one '.join(units)} each."
    )
  if data.sample_unit == "dialogue" and (
    data.align != "none" or data.max_steps or data.num_frame_clusters
  ):
    raise UserError(
      "config.data.sample_unit='dialogue' makes one step of every utterance:"
      " config.data.align"
      f"={data.align!r} must be 'none', max_steps={data.max_steps} and"
      f" codes={data.num_frame_clusters} 0 (off)."
    )
