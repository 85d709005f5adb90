"""MLF-DNN, MTFN and MLMF: late fusion whose modalities predict labels of their own.

LF-DNN, TFN and LMF, with a head on each modality's features that learns what
annotators said of that modality alone, as CH-SIMS has it.

Source: Yu et al., CH-SIMS: a Chinese multimodal sentiment analysis dataset with
fine-grained annotations of modality, ACL 2020, as in MMSA (thuiar/MMSA, multiTask/).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.models.late_fusion.base import (
  COMPAT,
  Features,
  LateFusion,
  Omega,
  check_by_modality,
  in_fusion_order,
  with_padding,
)
from msa_jax.models.late_fusion.encoders import (
  TEXT_ENCODERS,
  Head,
  mmsa_head,
  mmsa_networks,
  rectify,
)
from msa_jax.models.late_fusion.lmf import FACTORS, low_rank_head, text_dim_of
from msa_jax.models.late_fusion.tfn import outer_product, squash
from msa_jax.models.options import check, construct, defaults
from msa_jax.models.outputs import (
  REGRESSION,
  OutputSpec,
  output_spec,
  primary_output,
  shape_predictions,
)
from msa_jax.models.system import Options, System, TaskTerm
from msa_jax.typing import Batch, ModelOutput, Spec

_RATES = FrozenDict(text=0.5, audio=0.5, vision=0.5)
UNIMODAL = tuple(
  (name, REGRESSION._replace(name=f"sentiment_{name}"))
  for name in ("text", "audio", "vision")
)


class MultiTask(LateFusion):
  """What the three have in common; abstract.

  Attributes:
    output, modalities: see `LateFusion`.
    unimodal: (modality, the task that it predicts alone).
    hidden_dims: modality -> units of its LSTM (text) or of its dense layers.
    dropout: modality -> rate in its network.
    unimodal_dims: modality -> units of both layers of its own head.
    unimodal_dropout: modality -> rate on its features, before its own head.
    text_encoder: of the text: an `lstm` as in MMSA, the `mean` of its steps, which is
      all that a fine-tuned encoder needs, or the `first` of them.
    compat: `mmsa` = means and last states over all steps, padding too, as in MMSA.
  """

  unimodal: tuple[tuple[str, OutputSpec], ...] = UNIMODAL
  hidden_dims: Mapping[str, int] = FrozenDict(text=64, audio=32, vision=64)
  dropout: Mapping[str, float] = FrozenDict(text=0.3, audio=0.3, vision=0.3)
  unimodal_dims: Mapping[str, int] = FrozenDict(text=16, audio=4, vision=32)
  unimodal_dropout: Mapping[str, float] = _RATES
  text_encoder: str = "lstm"
  compat: str = "none"

  def __post_init__(self):
    more = [name for name in ("text_dim", "post_dim", "rank") if hasattr(self, name)]
    rates = [name for name in ("post_dropout",) if hasattr(self, name)]
    check(
      self,
      choices={"compat": COMPAT, "text_encoder": TEXT_ENCODERS},
      positive=("hidden_dims", "unimodal_dims", *more),
      rates=("dropout", "unimodal_dropout", *rates),
    )
    check_by_modality(
      self, "hidden_dims", "dropout", "unimodal_dims", "unimodal_dropout"
    )
    super().__post_init__()

  @nn.nowrap
  def text_width(self) -> int:
    """Width of the text's features."""
    return text_dim_of(self.hidden_dims)

  @nn.nowrap
  def make_head(self) -> nn.Module:
    """What reads the fused features."""
    raise NotImplementedError

  def setup(self):
    self.encoder, self.last = mmsa_networks(
      self.modalities,
      self.hidden_dims,
      self.dropout,
      self.text_width(),
      self.text_encoder,
    )
    self.head = self.make_head()
    self.alone = {
      name: Head(
        (self.unimodal_dims[name],) * 2, task.num_outputs, self.unimodal_dropout[name]
      )
      for name, task in self.unimodal
      if name in self.modalities
    }

  @nn.nowrap
  def read(self, batch: Batch) -> Batch:
    """The batch with the steps that count, by `compat`."""
    return with_padding(batch) if self.compat == "mmsa" else batch

  def project(self, features: Features) -> dict[str, Float[Array, "b d"]]:
    """Last linear layer of each modality; ReLU after it for all but text."""
    return rectify(super().project(features))

  def tail(
    self, features: Features, omega: Omega, batch: Batch, *, train: bool = False
  ) -> ModelOutput:
    """As `LateFusion.tail`, and what each modality predicts by itself."""
    output = super().tail(features, omega, batch, train=train)
    predictions, tasks = dict(output.predictions), dict(self.unimodal)
    for name, head in self.alone.items():
      values = head(output.features[name], train=train)
      predictions[tasks[name].name] = shape_predictions(tasks[name], values)
    return output.replace(predictions=predictions)


class MLFDNN(MultiTask):
  """LF-DNN with a head for each modality too, by default as MMSA has it for SIMS.

    model = MLFDNN()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Attributes:
    output, modalities: see `LateFusion`.
    unimodal: (modality, the task that it predicts alone).
    hidden_dims: modality -> units of its LSTM (text) or of its dense layers.
    text_dim: width of the text's features; other modalities keep their `hidden_dims`.
    post_dim: units of both layers after fusion.
    post_dropout: rate on the fused features.
    dropout: modality -> rate in its network.
    unimodal_dims: modality -> units of both layers of its own head.
    unimodal_dropout: modality -> rate on its features, before its own head.
    text_encoder: of the text: an `lstm` as in MMSA, the `mean` of its steps, which is
      all that a fine-tuned encoder needs, or the `first` of them.
    compat: `mmsa` = means and last states over all steps, padding too, as in MMSA.
  """

  text_dim: int = 32
  post_dim: int = 32
  post_dropout: float = 0.5

  @nn.nowrap
  def text_width(self) -> int:
    """Width of the text's features."""
    return self.text_dim

  @nn.nowrap
  def make_head(self) -> nn.Module:
    """Two ReLU layers and a linear one."""
    return mmsa_head(self.post_dim, self.output.num_outputs, self.post_dropout)


class MTFN(MLFDNN):
  """TFN with a head for each modality too, by default as MMSA has it for SIMS.

    model = MTFN()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Attributes:
    output, modalities: see `LateFusion`.
    unimodal: (modality, the task that it predicts alone).
    hidden_dims: modality -> units of its LSTM (text) or of its dense layers.
    text_dim: width of the text's features; other modalities keep their `hidden_dims`.
    post_dim: units of both layers after fusion.
    post_dropout: rate on the fused features.
    dropout: modality -> rate in its network.
    unimodal_dims: modality -> units of both layers of its own head.
    unimodal_dropout: modality -> rate on its features, before its own head.
    text_encoder: of the text: an `lstm` as in MMSA, the `mean` of its steps, which is
      all that a fine-tuned encoder needs, or the `first` of them.
    compat: `mmsa` = means and last states over all steps, padding too, and predictions
      in [-3, 3] whatever the corpus, as in MMSA.
  """

  hidden_dims: Mapping[str, int] = FrozenDict(text=256, audio=32, vision=256)
  text_dim: int = 256
  post_dim: int = 64
  dropout: Mapping[str, float] = FrozenDict(text=0.2, audio=0.2, vision=0.2)
  post_dropout: float = 0.2
  unimodal_dims: Mapping[str, int] = FrozenDict(text=64, audio=4, vision=8)
  unimodal_dropout: Mapping[str, float] = FrozenDict(text=0.2, audio=0.2, vision=0.2)

  def fuse(
    self,
    weighted: Features,
    projected: Features,
    present: Mapping[str, Bool[Array, " b"]],
  ) -> tuple[Float[Array, "b c"], dict[str, Array]]:
    """The outer product, which is too wide to report."""
    del projected, present
    return outer_product(in_fusion_order(weighted)), {}

  @nn.nowrap
  def finish(self, values: Float[Array, "b c"]) -> Float[Array, "b c"]:
    """Squashes regression into the task's range by a sigmoid."""
    return squash(values, self.output, self.compat)


class MLMF(MultiTask):
  """LMF with a head for each modality too, by default as MMSA has it for SIMS.

    model = MLMF()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Attributes:
    output, modalities: see `LateFusion`.
    unimodal: (modality, the task that it predicts alone).
    hidden_dims: modality -> units of its LSTM (text, whose features are
      half as wide) or of its dense layers.
    rank: of the fusion's weights.
    dropout: modality -> rate in its network.
    unimodal_dims: modality -> units of both layers of its own head.
    unimodal_dropout: modality -> rate on its features, before its own head.
    text_encoder: of the text: an `lstm` as in MMSA, the `mean` of its steps, which is
      all that a fine-tuned encoder needs, or the `first` of them.
    compat: `mmsa` = means and last states over all steps, padding too, and the weights
      of the ranks and the bias stay as they begin, as in MMSA.
  """

  hidden_dims: Mapping[str, int] = FrozenDict(text=256, audio=32, vision=256)
  rank: int = 3
  unimodal_dims: Mapping[str, int] = FrozenDict(text=8, audio=4, vision=32)
  unimodal_dropout: Mapping[str, float] = FrozenDict(text=0.4, audio=0.4, vision=0.4)

  @nn.nowrap
  def make_head(self) -> nn.Module:
    """The low-rank fusion."""
    return low_rank_head(self, self.hidden_dims, self.rank, self.compat == "mmsa")


def options(name: str, network: type[MultiTask]) -> dict[str, Any]:
  """Options of a system (`config.model`): the fields of its network."""
  return {"name": name, **defaults(network, "unimodal")}


def losses() -> dict[str, object]:
  """Options of the objective that these systems add to `config.loss`.

  Returns:
    `task`, the loss of all four labels; `multimodal_weight`, `text_weight`,
    `audio_weight` and `vision_weight`, factors of theirs.
  """
  return {
    "task": "default",
    "multimodal_weight": 1.0,
    "text_weight": 1.0,
    "audio_weight": 1.0,
    "vision_weight": 1.0,
  }


def terms(loss: Options, spec: Spec) -> Mapping[str, TaskTerm]:
  """Every task's loss, and its weight: `sentiment_audio` has `audio_weight`, and what
  is no modality's own has `multimodal_weight`."""
  found = {}
  for name in spec.tasks:
    alone = name.rpartition("_")[2]
    key = f"{alone}_weight"
    weight = loss[key if key in loss else "multimodal_weight"]
    found[name] = TaskTerm(loss.get("task", "default"), weight)
  return found


def partition(path: tuple[str, ...]) -> str:
  """The networks of text, audio and vision and the low-rank factors are apart."""
  for name in ("text", "audio", "vision"):
    if path[0] in (f"encoder_{name}", f"last_{name}"):
      return name
  return FACTORS if path[-1].startswith("factor_") else "new"


def _build(network: type[MultiTask], name: str):
  def build(options: Options, spec: Spec) -> MultiTask:
    output = primary_output(options, spec)
    wanted = {each: f"{output.name}_{each}" for each in spec.modalities}
    lacking = [task for task in wanted.values() if task not in spec.tasks]
    if lacking:
      raise UserError(
        f"{name} learns what each modality says alone, but the corpus has no label"
        f" {lacking[0]!r} (it has {', '.join(sorted(spec.tasks))}); train"
        f" {_WITHOUT[name]} instead: --config=configs/{_WITHOUT[name]}.py"
      )
    unimodal = tuple(
      (each, output_spec(task, spec.tasks[task])) for each, task in wanted.items()
    )
    return construct(
      network, options, output=output, modalities=spec.modalities, unimodal=unimodal
    )

  return build


_WITHOUT = {"mlf_dnn": "lf_dnn", "mtfn": "tfn", "mlmf": "lmf"}


def _system(name: str, network: type[MultiTask]) -> System:
  return System(
    build=_build(network, name),
    options=defaults(network, "unimodal"),
    losses=losses(),
    terms=terms,
    partition=partition,
  )


MLF_DNN_SYSTEM = _system("mlf_dnn", MLFDNN)
MTFN_SYSTEM = _system("mtfn", MTFN)
MLMF_SYSTEM = _system("mlmf", MLMF)
