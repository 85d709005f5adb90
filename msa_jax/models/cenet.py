"""CENet: audio and vision enhance the states of a text encoder from inside.

Source: Wang, Liu, Wang, Lin, Su, Yan, IEEE TMM 2022; its code (Say2L/CENet), and MMSA's
version for continuous features (thuiar/MMSA, singleTask/CENET.py).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.config.options import OptimConfig
from msa_jax.errors import UserError
from msa_jax.layers.masking import POOLS, masked_softmax, pool_steps
from msa_jax.models.late_fusion.base import COMPAT, check_present
from msa_jax.models.mag_bert import TanhHead
from msa_jax.models.options import check, construct, defaults
from msa_jax.models.outputs import (
  REGRESSION,
  OutputSpec,
  primary_output,
  shape_predictions,
)
from msa_jax.models.system import Options, Stage, System
from msa_jax.text.finetune import PARAMETERS
from msa_jax.text.hooks import Hook
from msa_jax.typing import MODALITIES, Batch, Modality, ModelOutput, Spec

EMBEDDINGS = ("frames", "codes")
CODES = "codes"  # the frames' cluster numbers, as `data.transforms.kmeans` calls them


class CrossmodalAttention(nn.Module):
  """Text attends to a modality: softmax(scale (Q h)(K e)^T) V e, with one head.

  Attributes:
    scale: factor of the scores; 8 as published, not one over the root of the width.
  """

  scale: float

  @nn.compact
  def __call__(
    self,
    states: Float[Array, "b t d"],
    frames: Float[Array, "b s d"],
    mask: Bool[Array, "b s"],
  ) -> Float[Array, "b t d"]:
    """What each step of the text gets; zero of a sample without the modality."""
    width = states.shape[-1]
    query = nn.Dense(width, name="query")(states)
    key, value = (nn.Dense(width, name=name)(frames) for name in ("key", "value"))
    scores = self.scale * jnp.einsum("btd,bsd->bts", query, key)
    return jnp.einsum("bts,bsd->btd", masked_softmax(scores, mask[:, None]), value)


class Enhancement(nn.Module):
  """h + L[a_v; a_a]: what text attends to in vision and audio, in one linear layer.

  Attributes:
    modalities: names, in the order of the concatenation.
    embedding: of `EMBEDDINGS`: two dense layers on continuous frames, or a table of
      their cluster codes.
    num_codes: clusters; one more number stands for padding.
    scale: see `CrossmodalAttention`.
    padding: steps beyond the frames are attended to as well, as published.

  Source: CENet, Eq. 3-8.
  """

  modalities: tuple[str, ...]
  embedding: str = "frames"
  num_codes: int = 16
  scale: float = 8.0
  padding: bool = False

  @nn.compact
  def __call__(
    self, states: Float[Array, "b t d"], batch: Batch
  ) -> Float[Array, "b t d"]:
    width, found = states.shape[-1], []
    for name in self.modalities:
      modality = batch.modalities[name]
      frames = self._embedded(modality, name, width)
      real = batch.sample_mask[:, None]
      mask = jnp.broadcast_to(real, modality.mask.shape)
      mask = mask if self.padding else modality.mask
      attend = CrossmodalAttention(self.scale, name=f"attend_{name}")
      found.append(attend(states, frames, mask))
    return states + nn.Dense(width, name="connect")(jnp.concatenate(found, axis=-1))

  @nn.nowrap
  def _embedded(
    self, modality: Modality, name: str, width: int
  ) -> Float[Array, "b s d"]:
    if self.embedding == "frames":
      hidden = nn.relu(nn.Dense(width, name=f"embed_{name}_1")(modality.features))
      return nn.Dense(width, name=f"embed_{name}_2")(hidden)
    if CODES not in modality.ids:
      raise UserError(_no_codes(name, self.num_codes))
    codes = jnp.where(modality.mask, modality.ids[CODES], self.num_codes)
    table = nn.Embed(self.num_codes + 1, width, name=f"codes_{name}")
    return table(jnp.clip(codes, 0, self.num_codes))


def _no_codes(name: str, count: int) -> str:
  return (
    f"config.model.embedding='codes': {name} has no cluster codes of its frames; set"
    f" config.data.num_frame_clusters={count}, or config.model.embedding='frames'."
  )


class CENet(nn.Module):
  """The network, by default MMSA's version.

    model = CENet()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  In a text encoder that is trained inside the model the enhancement sits between two
  layers; features of a frozen one it changes themselves.

  Attributes:
    output: the task predicted.
    modalities: names in canonical order; every batch must have them.
    embedding, num_codes: see `Enhancement`.
    injection_layer: layers of the text encoder below the enhancement.
    score_scale: factor of the attention scores.
    dropout: rate on the head's input and on what its last layer reads.
    text_pool: what stands for a text: the `first` step (the sentence token), as
      published, or the `mean`.
    compat: `mmsa` = padding of audio and vision is attended to, and the text encoder's
      embeddings are not trained.
  """

  output: OutputSpec = REGRESSION
  modalities: tuple[str, ...] = MODALITIES
  embedding: str = "frames"
  num_codes: int = 16
  injection_layer: int = 1
  score_scale: float = 8.0
  dropout: float = 0.1
  text_pool: str = "first"
  compat: str = "none"

  def __post_init__(self):
    check(
      self,
      choices={"compat": COMPAT, "embedding": EMBEDDINGS, "text_pool": POOLS},
      positive=("num_codes",),
      not_negative=("injection_layer",),
      above_zero=("score_scale",),
      rates=("dropout",),
    )
    if "text" not in self.modalities or len(self.modalities) < 2:
      raise UserError(
        f"CENet enhances text by what else there is: modalities"
        f" {', '.join(self.modalities)} must be text and another one; choose with"
        " config.data.modalities."
      )
    super().__post_init__()

  def setup(self):
    # The enhancement is reached from the encoder, so the parts are made here.
    self.enhance = Enhancement(
      tuple(name for name in reversed(self.modalities) if name != "text"),
      self.embedding,
      self.num_codes,
      self.score_scale,
      self.compat == "mmsa",
    )
    self.head = TanhHead(self.output.num_outputs, self.dropout, self.dropout)

  def hooks(self, batch: Batch, train: bool) -> dict[int, Hook]:
    """The enhancement between layers of a text encoder; see `text.hooks`."""
    del train

    def enhance(states, mask):
      del mask
      return self.enhance(states, batch)

    return {self.injection_layer: enhance}

  def __call__(
    self, batch: Batch, *, train: bool = False, hooked: bool = False
  ) -> ModelOutput:
    """Predicts one task.

    Args:
      batch: has every modality of the network; what is absent is hidden.
      train: whether dropout is used.
      hooked: whether the text encoder has been enhanced already.

    Raises:
      UserError: the batch lacks a modality, or its frames have no codes.
    """
    check_present(self.modalities, batch)
    text = batch.modalities["text"]
    states = text.features
    if not hooked:
      states = self.enhance(states, batch)
    pooled = pool_steps(states, text.mask, self.text_pool)
    values, hidden = self.head(pooled, train=train)
    predictions = {self.output.name: shape_predictions(self.output, values)}
    return ModelOutput(predictions, {"pooled": hidden})


def build(options: Options, spec: Spec) -> CENet:
  """Builds the network for a corpus.

  Raises:
    UserError: a value out of range, or frames without the codes that it is to read.
  """
  output = primary_output(options, spec)
  model = construct(CENet, options, output=output, modalities=spec.modalities)
  for name in model.modalities:
    lacking = name != "text" and CODES not in spec.ids.get(name, ())
    if model.embedding == "codes" and lacking:
      raise UserError(_no_codes(name, model.num_codes))
  return model


def _but_embeddings(path: tuple[str, ...]) -> bool:
  return path[:2] != (PARAMETERS, "embeddings")


def stages(
  options: Options, spec: Spec, optim: OptimConfig, monitor: str
) -> tuple[Stage, ...]:
  """The whole training in one stage; `compat` leaves the embeddings as they are."""
  del spec, monitor
  stage = Stage("train", optim.epochs, optim.patience)
  if options.get("compat") == "mmsa":
    stage = stage._replace(trainable=_but_embeddings)
  return (stage,)


def partition(path: tuple[str, ...]) -> str:
  """The head's biases are by themselves: MMSA's trainer decays all but them."""
  return "head_bias" if path[0] == "head" and path[-1] == "bias" else "new"


def options() -> dict[str, Any]:
  """Options of the system (`config.model`): the fields of `CENet`."""
  return {"name": "cenet", **defaults(CENet)}


SYSTEM = System(
  build=build, stages=stages, partition=partition, options=defaults(CENet)
)
