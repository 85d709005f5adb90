"""The options of a run, typed: what a config's sections hold, with their defaults.

A config file writes them as a `ConfigDict` (`config.defaults.base`); everything inside
the library takes these frozen dataclasses, or the values it needs.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from msa_jax.data.synthetic.generator import SyntheticOptions
from msa_jax.errors import UserError

MEMORY = "memory"  # format of a corpus that is no file


def _mapping(**values: Any) -> Any:
  return dataclasses.field(default_factory=lambda: dict(values))


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """How parameters are updated.

  Attributes:
    name: `adam`, `adamw` or `sgd`.
    learning_rate: of the new modules (partition `new`).
    learning_rates: of a system's other partitions, by name.
    warmup_fraction: of all steps, in [0, 1].
    schedule: after the warm-up: `constant`, `linear` or `cosine`.
    grad_clip_norm: greatest global norm of the gradient; 0 = no clipping.
    grad_clip_value: greatest absolute entry of the gradient; 0 = no clipping.
    weight_decay: L2 for `adam` and `sgd`, decoupled and of matrices for `adamw`.
    weight_decays: of a system's partitions, by name; others have `weight_decay`.
    decay_norms: L2 also of a text encoder's norms and biases, which have none else.
    epsilon: of Adam's denominator.
    accumulate_steps: batches whose gradients make one update.
    accumulation: of these gradients the `mean`, which at the end of an epoch is that of
      the batches that are left; or their `sum`, as MMSA's trainers have it: its entries
      are clipped after every batch, and what is left over is dropped.
    momentum: of `sgd`.
    ema_decay: of a running mean of the parameters, which then predicts; 0 = none.
    epochs: most epochs.
    batch_size: samples per step.
    patience: epochs without improvement on validation; 0 = never stop.
  """

  name: str = "adam"
  learning_rate: float = 1e-3
  learning_rates: Mapping[str, float] = _mapping()
  warmup_fraction: float = 0.1
  schedule: str = "linear"
  grad_clip_norm: float = 2.0
  grad_clip_value: float = 0.0
  weight_decay: float = 0.0
  weight_decays: Mapping[str, float] = _mapping()
  decay_norms: bool = False
  epsilon: float = 1e-8
  accumulate_steps: int = 1
  accumulation: str = "mean"
  momentum: float = 0.0
  ema_decay: float = 0.0
  epochs: int = 40
  batch_size: int = 32
  patience: int = 10

  @property
  def rates(self) -> dict[str, float]:
    """Partition name -> learning rate."""
    return {"new": self.learning_rate, **self.learning_rates}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How the loop runs.

  Attributes:
    monitor: what picks the epoch on validation: `auto`, or terms
      `[weight*][task/]metric` with commas; see `training/selection.py`.
    selection_split: `val`; `none`: no split selects, the last epoch is kept; or
      `official`: by the test split, as some released code does (with a warning).
    preset: recipe by what the text input is (`auto`), or one by name, or `none`: the
      values of the config file; see `config/regimes.py`.
    references: fit the constant and linear models that results stand beside.
    task_cosine: log how the tasks' gradients agree on shared parameters.
    eval_batch_size: samples per batch of validation and prediction.
    checkpoint_every_seconds: between two checkpoints.
    steps_per_call: most steps of one call of the compiled program.
  """

  monitor: str = "auto"
  selection_split: str = "val"
  preset: str = "none"
  references: bool = True
  task_cosine: bool = False
  eval_batch_size: int = 64
  checkpoint_every_seconds: float = 30.0
  steps_per_call: int = 100


@dataclasses.dataclass(frozen=True)
class MissingConfig:
  """What is missing; `data/missing/patterns.py` has the patterns.

  Attributes:
    train: e.g. `dropout:0.1`; drawn anew each step, but for lost frames and tokens.
    eval: in validation and test, drawn once: e.g. `random:0.3`.
    seed: of the masks that are drawn once.
  """

  train: str = "none"
  eval: str = "none"
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class BalanceConfig:
  """B-fusion around any model with `encode` and `tail`; see `step/balance`.

  Attributes:
    enabled: whether fusion weights are trained.
    omega_init: their first value.
    omega_loss: `relative`, or `literal`: not divided by the mean gradient.
    omega_lr: a number, or a number followed by `/steps_per_epoch`.
    omega_clip: least and greatest weight.
    omega_norm: `none`, or `sum3`: the weights add up to the number of modalities.
    r_max: largest ratio of gradient sizes; inf = no bound.
    target_stop_grad: the targets of the gradient sizes are constants.
    omega_grad: `autodiff`, or `proportional`: without second derivatives.
    g_ema: decay of a running mean of the gradient sizes; 0 = none.
    scale_updates_by_omega: `true`, `false`, or `auto`: as gradients scale under SGD,
      so do the updates of adaptive optimizers.
  """

  enabled: bool = False
  omega_init: float = 1.0
  omega_loss: str = "relative"
  omega_lr: str = "0.05/steps_per_epoch"
  omega_clip: tuple[float, float] = (0.05, 5.0)
  omega_norm: str = "none"
  r_max: float = 10.0
  target_stop_grad: bool = True
  omega_grad: str = "autodiff"
  g_ema: float = 0.0
  scale_updates_by_omega: str = "auto"


@dataclasses.dataclass(frozen=True)
class AnchorConfig:
  """Whether a system predicts a correction of what text alone says; the formula is in
  `models/with_anchor.py`.

  Attributes:
    to: `text`, or `none`: the system predicts by itself, as its paper has it; `auto`:
      text wherever the corpus has it and the one task is a real number, unless the
      system reads nothing else or trains branches that have nothing in common. A run's
      config.json says which it was.
    pool: text that the anchor reads: the `mean` of its steps, or the `first`.
    dropout: rate on the pooled text.
    scale: of the correction, where it begins; it is learned.
  """

  to: str = "none"
  pool: str = "mean"
  dropout: float = 0.1
  scale: float = 0.1

  @property
  def is_on(self) -> bool:
    """Whether there is an anchor; of a resolved config."""
    return self.to == "text"


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Where a run's text comes from.

  Attributes:
    input: `features` of the file, or `encoder`: the transcripts, through `encoder`.
    encoder: folder of a Hugging Face checkpoint, or a name of the hub.
    finetune: `none`: the encoder's last states are features, made once; `all`, or
      `top_<n>`: trained along, whole or the n upper layers; `lora`: low-rank changes of
      attention in all layers are trained, and nothing else of it.
    lora_rank: of the changes.
    lora_alpha: the changes are scaled by alpha / rank.
    lora_projections: of attention that are changed: `query`, `key`, `value`, `out`.
    frozen_dtype: `float32`, or `bfloat16` for half the memory: of what `top_<n>` and
      `lora` leave as it is.
    start: `pretrained`, or `scratch`: the encoder that is trained begins with random
      values, and only its sizes and tokens are the checkpoint's.
    learning_rate: of what is trained of the encoder.
    layer_decay: factor of the learning rate from each of its layers to the one below;
      1 = the same for all.
    remat: compute layers again in the backward pass, for less memory.
    linguistic: SentiLARE's inputs: part of speech and polarities.
    max_length: tokens kept; 0 = as long as the corpus and the encoder allow.
    context: how many utterances before and after, of the same video or dialogue, the
      encoder reads beside each: `2,1`. They are its second segment; the model sees the
      states of the utterance itself.
    context_length: most tokens of them, the nearest first.
    cache: folder of features made before; "" = the user's cache folder.
  """

  input: str = "features"
  encoder: str = ""
  finetune: str = "none"
  lora_rank: int = 8
  lora_alpha: float = 16.0
  lora_projections: tuple[str, ...] = ("query", "value")
  frozen_dtype: str = "float32"
  start: str = "pretrained"
  learning_rate: float = 2e-5
  layer_decay: float = 1.0
  remat: bool = False
  linguistic: bool = False
  max_length: int = 0
  context: tuple[int, ...] = (0, 0)
  context_length: int = 128
  cache: str = ""

  @property
  def is_encoded(self) -> bool:
    """Whether transcripts are read in place of features."""
    return self.input == "encoder"

  @property
  def is_tuned(self) -> bool:
    """Whether the model reads token ids, through an encoder trained with it."""
    return self.is_encoded and self.finetune.lower() not in ("none", "false")

  @property
  def has_context(self) -> bool:
    """Whether the encoder reads neighbouring utterances."""
    return self.is_encoded and any(self.context)


@dataclasses.dataclass(frozen=True)
class InitConfig:
  """What the parameters start from.

  Seed s starts from an earlier run's seed s, or from its first seed where it has no s.
  The optimizer starts afresh.

  Attributes:
    text_head: linear layers that read pooled text (those of `text_only`, and of the
      anchor) start as the `linear` model of it, ridge or logistic regression fitted on
      training (`runs/linear_start.py` says how, and where that cannot be), or with
      `random` values.
    from_run: folder of a finished run; "" = none.
    what: `encoder`: the text encoder that it trained; `all`: every parameter.
    parameter_hash: of what is taken, one for each seed of that run; filled in when the
      run begins, so that it cannot go on from something else.
  """

  text_head: str = "random"
  from_run: str = ""
  what: str = "encoder"
  parameter_hash: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ReplicasConfig:
  """Which seeds are trained, and how.

  Attributes:
    seeds: one training each.
    mode: at once (`vmap`), one after the other (`sequential`), or as this machine does
      it faster (`auto`); see `training/vmapped_stages.py`.
    most_at_once: largest number in one program, to bound memory; 0 = all.
  """

  seeds: tuple[int, ...] = (0,)
  mode: str = "auto"
  most_at_once: int = 0


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
  """Devices that work is split over.

  Attributes:
    data: number of devices that share a batch.
    replica: number that share the seeds of `replicas.seeds`.
    expert: number that share a bank of experts.
  """

  data: int = 1
  replica: int = 1
  expert: int = 1


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The corpus, and what happens to it before the first batch.

  Attributes:
    path: file or folder; "" = the synthetic corpus.
    recipe: data set whose settings the config has, which needs that data set's file;
      "" = of the synthetic corpus, or of data of your own.
    format: one of `data.readers.FORMATS`; `auto` looks at the content.
    extra_train_paths: further files to train with, each sample with the labels it has;
      batches draw from all files equally.
    extra_evaluation: validation and test are those of all files, not of `path` alone.
    pseudo_label_run: run whose predictions are the labels that training lacks.
    modalities: () = every modality of the corpus.
    screen_level: leave out modalities that say nothing of the labels, as far as linear
      models of them can tell on the training split; probability that one of pure noise
      stays, such as .05; 0 = none is left out.
    features: modality -> MMSA's separate feature file that replaces the main file's,
      or GCNet's folder of one .npy per utterance.
    valence: ratings of valence in 1..5 become sentiment in [-3, 3].
    sample_unit: `utterance`, or `dialogue`: its utterances are the steps.
    fold: number of the session or fold to test on; 0 = the last session, or the
      corpus's own splits; `all` = each in turn, one run for each.
    num_folds: folds of whole videos or dialogues, into which the corpus is cut, its own
      splits pooled; 0 = its sessions, or its own splits.
    train_fraction: of the training split, stratified.
    iemocap_val: `holdout10`: a tenth of the training dialogues selects; or `none`.
    task: `regression`, or classes made from a sentiment label: `cls2`, `cls7`.
    standardize: modalities scaled to mean 0 and deviation 1.
    align: `none`, or `pool`: audio and vision at the text's steps.
    max_steps: longest sequence kept, in steps; 0 = as long as the corpus.
    num_frame_clusters: k-means codes of audio and vision frames; 0 = none.
    synthetic: the world of the synthetic corpus.
    buckets: static lengths that batches of similar samples are cut to; 0 = one.
    device_budget_mib: larger splits are streamed from the host.
  """

  path: str = ""
  recipe: str = ""
  format: str = "auto"
  extra_train_paths: tuple[str, ...] = ()
  extra_evaluation: bool = False
  pseudo_label_run: str = ""
  modalities: tuple[str, ...] = ()
  screen_level: float = 0.0
  features: Mapping[str, str] = _mapping(text="", audio="", vision="")
  valence: bool = False
  sample_unit: str = "utterance"
  fold: str = "0"
  num_folds: int = 0
  train_fraction: float = 1.0
  iemocap_val: str = "holdout10"
  task: str = "regression"
  standardize: tuple[str, ...] = ("audio", "vision")
  align: str = "none"
  max_steps: int = 0
  num_frame_clusters: int = 0
  synthetic: SyntheticOptions = dataclasses.field(default_factory=SyntheticOptions)
  buckets: int = 0
  device_budget_mib: int = 4096

  @property
  def is_cross_validated(self) -> bool:
    """Whether every fold is tested on in turn."""
    return self.fold == "all"

  @property
  def fold_number(self) -> int:
    """The one fold to test on.

    Raises:
      UserError: all of them are.
    """
    if self.is_cross_validated:
      raise UserError(
        "config.data.fold='all' makes one run for each fold, which training does; give"
        " the number of one fold here."
      )
    return int(self.fold)
