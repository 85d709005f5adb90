"""What a config may say: the rules that types cannot hold, checked before a run."""

from msa_jax import models
from msa_jax.config import regimes
from msa_jax.config.experiment import Experiment
from msa_jax.config.options import DataConfig
from msa_jax.data import missing
from msa_jax.data.transforms import dialogues
from msa_jax.errors import UserError
from msa_jax.layers.masking import POOLS
from msa_jax.text import options as text_options

INITIAL = ("encoder", "all")  # what `config.init.from_run` gives
ANCHORS = ("none", "text")
REPLICA_MODES = ("auto", "vmap", "sequential")
_POSITIVE = (lambda value: value > 0, "positive")
_NOT_NEGATIVE = (lambda value: value >= 0, "0 (off) or positive")
_SHARE = (lambda value: 0.0 <= value <= 1.0, "in [0, 1]")
_BELOW_ONE = (lambda value: 0.0 <= value < 1.0, "in [0, 1)")
_RANGES = {
  "optim.epochs": _POSITIVE,
  "optim.batch_size": _POSITIVE,
  "train.eval_batch_size": _POSITIVE,
  "train.steps_per_call": _POSITIVE,
  "train.checkpoint_every_seconds": _POSITIVE,
  "sharding.data": _POSITIVE,
  "sharding.replica": _POSITIVE,
  "sharding.expert": _POSITIVE,
  "optim.grad_clip_norm": _NOT_NEGATIVE,
  "optim.patience": _NOT_NEGATIVE,
  "data.max_steps": _NOT_NEGATIVE,
  "data.num_frame_clusters": _NOT_NEGATIVE,
  "data.buckets": _NOT_NEGATIVE,
  "missing.seed": _NOT_NEGATIVE,
  "data.fold": _NOT_NEGATIVE,
  "replicas.most_at_once": _NOT_NEGATIVE,
  "optim.warmup_fraction": _SHARE,
  "loss.aux_warmup_fraction": _SHARE,
  "optim.ema_decay": _BELOW_ONE,
  "anchor.dropout": _BELOW_ONE,
  "anchor.scale": _POSITIVE,
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
  text_options.check(config.text)
  for path, (fits, rule) in _RANGES.items():
    section, _, name = path.partition(".")
    group = getattr(config, section)
    value = group.get(name, 0.0) if section == "loss" else getattr(group, name)
    if not fits(value):
      raise UserError(f"config.{path}={value} must be {rule}.")
  for key in ("train", "eval"):
    missing.parse(getattr(config.missing, key), option=f"config.missing.{key}: ")
  if config.train.preset not in regimes.PRESETS:
    raise UserError(
      f"config.train.preset={config.train.preset!r} must be one of {regimes.PRESETS}."
    )
  for key, choices in (("to", ANCHORS), ("pool", POOLS)):
    if getattr(config.anchor, key) not in choices:
      raise UserError(
        f"config.anchor.{key}={getattr(config.anchor, key)!r} must be one of {choices}."
      )
  if config.replicas.mode not in REPLICA_MODES:
    raise UserError(
      f"config.replicas.mode={config.replicas.mode!r} must be one of {REPLICA_MODES}."
    )
  if config.init.what not in INITIAL:
    raise UserError(f"config.init.what={config.init.what!r} must be one of {INITIAL}.")
  if config.init.from_run and config.text.start == "scratch":
    raise UserError(
      f"config.init.from_run={config.init.from_run!r} gives the encoder its values:"
      " config.text.start='scratch' must be 'pretrained'."
    )
  seeds = config.replicas.seeds
  if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
    raise UserError(
      f"config.replicas.seeds={seeds} must be distinct non-negative integers, at"
      " least one."
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
