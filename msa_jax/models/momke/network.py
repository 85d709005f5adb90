"""MoMKE: a mixture of modality knowledge experts for incomplete modalities.

Source: "Leveraging Knowledge of Modality Experts for Incomplete Multimodal Learning"
(ACM MM 2024) and its released code, whose forward pass this is.
"""

from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.layers.masking import masked_mean
from msa_jax.layers.subsets import random_subset
from msa_jax.models.momke.blocks import MIXING, WITH_ONE, Mixed, Network
from msa_jax.models.momke.conditions import (
  conditions,
  kept_by,
  own_branch,
)
from msa_jax.models.options import check
from msa_jax.models.outputs import REGRESSION, OutputSpec, shape_predictions
from msa_jax.typing import MODALITIES, Batch, ModelOutput, Routing

LEVELS = ("utterance", "frame")
MASKS = ("condition", "mixed")


class MoMKE(nn.Module):
  """The model, by default with the released code's sizes, for dialogues.

    model = MoMKE()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Attributes:
    output: the task predicted.
    modalities: names in canonical order; () = those of the batch.
    level: what a step is, `utterance` of a dialogue or `frame` of one utterance; frames
      are pooled before the heads.
    hidden_dim: width of projections, experts and routers.
    num_layers: of every expert.
    num_heads: attention heads of every layer.
    dropout: rate after the projections, in the experts, routers and after fusion.
    attention_dropout: rate on the experts' attention probabilities.
    router_logit_dropout: rate on the routers' logits.
    mixing: weights of the experts: the `router`'s, or, as ablations, `uniform` ones,
      the modality's `own` expert alone, or the router's over its own and that of one
      other modality (`own+text`).
    stage2_mask: modalities that stage 2 sees: those of `condition`, or `mixed`, a
      random subset for each row: one model for all conditions.
    condition: initials of modalities, e.g. `atv`; `all` = one branch of stage 2 for
      every condition, trained together.
  """

  output: OutputSpec = REGRESSION
  modalities: tuple[str, ...] = ()
  level: str = "utterance"
  hidden_dim: int = 256
  num_layers: int = 4
  num_heads: int = 2
  dropout: float = 0.5
  attention_dropout: float = 0.0
  router_logit_dropout: float = 0.5
  mixing: str = "router"
  stage2_mask: str = "condition"
  condition: str = "atv"

  def __post_init__(self):
    mixings = (*MIXING, *(f"{WITH_ONE}{m}" for m in self.modalities or MODALITIES))
    check(
      self,
      choices={"level": LEVELS, "mixing": mixings, "stage2_mask": MASKS},
      positive=("hidden_dim", "num_layers", "num_heads"),
      rates=("dropout", "attention_dropout", "router_logit_dropout"),
    )
    if self.hidden_dim % self.num_heads:
      raise UserError(
        f"model.num_heads={self.num_heads} must divide"
        f" model.hidden_dim={self.hidden_dim}."
      )
    if self.modalities and self.condition != "all":
      kept_by(self.condition, self.modalities)
    super().__post_init__()

  @property
  def is_branched(self) -> bool:
    """Whether stage 2 trains one branch per condition."""
    return self.stage2_mask == "condition" and self.condition == "all"

  @nn.compact
  def __call__(
    self, batch: Batch, *, train: bool = False, stage: int = 2
  ) -> ModelOutput:
    """Predicts every utterance of a dialogue ([b t]; [b] at level `frame`).

    Args:
      batch: modalities share the time axis: utterances, or aligned frames. An
        utterance's modality is missing where it is unavailable, lost or padding.
      train: whether dropout and the sampling of masks happen.
      stage: 1 = every modality by its own expert and head, predictions
        `<task>@<modality>` (and, in evaluation, `<task>`, the mean over the available
        modalities' outputs); 2 = experts mixed, prediction `<task>`. With one branch
        per condition, or in evaluation with one model for all, also
        `<task>@<condition>`, and gates `<modality>@<condition>`.

    Raises:
      UserError: the batch lacks a modality.
    """
    names = self.modalities or batch.order
    features, mask = _read(batch, names)
    network = self._network(names, train, "network")
    if self.is_initializing():
      # It creates the parameters of both stages, whichever is asked for.
      self._unimodal(network, features, mask, train)
    elif stage == 1:
      return self._unimodal(network, features, mask, train)
    return self._mixed(network, features, mask, train)

  @nn.nowrap
  def _mixed(self, network, features, mask, train) -> ModelOutput:
    names = network.modalities
    if self.is_branched:
      return self._branches(names, features, mask, train)
    if self.stage2_mask == "condition":
      kept = jnp.asarray(kept_by(self.condition, names))
      return self._shown(network, features, mask & kept[:, None, None])
    if train:
      return self._shown(network, features, mask & self._sampled(mask))
    if self.is_initializing():
      return self._output(names, network(features, mask))
    return self._every_condition(network, features, mask)

  @nn.nowrap
  def _shown(self, network, features, shown) -> ModelOutput:
    """Of the modalities that are shown; the batch may have more."""
    names = network.modalities
    output = self._output(names, network(features, shown))
    if "text" not in names:
      return output
    seen = _seen(shown, self.level)[names.index("text")]
    return output.replace(text_seen={self.output.name: seen})

  @nn.nowrap
  def _network(self, names, train: bool, name: str, make=Network) -> Network:
    return make(
      modalities=names,
      num_outputs=self.output.num_outputs,
      hidden_dim=self.hidden_dim,
      num_layers=self.num_layers,
      num_heads=self.num_heads,
      dropout=self.dropout,
      attention_dropout=self.attention_dropout,
      router_logit_dropout=self.router_logit_dropout,
      mixing=self.mixing,
      pools=self.level == "frame",
      deterministic=not train,
      name=name,
    )

  @nn.nowrap
  def _unimodal(self, network, features, mask, train) -> ModelOutput:
    values, streams = network.unimodal(network.project(features), mask)
    names, task = network.modalities, self.output.name
    predictions = {
      f"{task}@{name}": shape_predictions(self.output, values[column])
      for column, name in enumerate(names)
    }
    if not train:
      seen = _seen(mask, self.level)[..., None]
      mean = masked_mean(values, jnp.broadcast_to(seen, values.shape), 0)
      predictions[task] = shape_predictions(self.output, mean)
    unseen = jnp.zeros_like(_seen(mask, self.level)[0])
    return ModelOutput(
      predictions,
      {f"y_{name}": streams[column] for column, name in enumerate(names)},
      # Each modality by itself, and their mean.
      text_seen=dict.fromkeys(predictions, unseen),
    )

  @nn.nowrap
  def _sampled(self, mask: Bool[Array, "m b t"]) -> Bool[Array, "m b _"]:
    """Modalities of each row that this training step shows."""
    seen = jnp.moveaxis(_seen(mask, self.level), 0, -1)  # [b t m] or [b m]
    drawn = jax.random.uniform(self.make_rng("noise"), seen.shape[:-1])
    kept = jnp.moveaxis(random_subset(drawn, seen), -1, 0)
    return kept if kept.ndim == 3 else kept[..., None]

  @nn.nowrap
  def _every_condition(self, network, features, mask) -> ModelOutput:
    """The rows with all that they have, then under every condition, in one batch."""
    names = network.modalities
    table = conditions(names)
    kept = [(True,) * len(names), *table.values()]
    shown = [mask & jnp.asarray(some)[:, None, None] for some in kept]
    tiled = {name: jnp.tile(x, (len(kept), 1, 1)) for name, x in features.items()}
    mixed = network(tiled, jnp.concatenate(shown, axis=1))
    size = mask.shape[1]

    def part(index):
      rows = slice(index * size, (index + 1) * size)
      routing = jax.tree.map(lambda leaf: leaf[rows], mixed.routing)
      streams = mixed.streams[:, rows]
      return Mixed(mixed.values[rows], mixed.hidden[rows], streams, routing)

    output = self._output(names, part(0))
    predictions, routing = dict(output.predictions), dict(output.routing)
    text_seen = {}
    for index, (name, some) in enumerate(table.items(), start=1):
      one = part(index)
      head = f"{self.output.name}@{name}"
      predictions[head] = shape_predictions(self.output, one.values)
      routing |= _gates(names, one.routing, name, some)
      if "text" in names:
        seen = _seen(shown[index], self.level)
        text_seen[head] = seen[names.index("text")]
    return output.replace(predictions=predictions, routing=routing, text_seen=text_seen)

  @nn.nowrap
  def _output(self, names: tuple[str, ...], mixed: Mixed) -> ModelOutput:
    streams = {f"r_{name}": mixed.streams[column] for column, name in enumerate(names)}
    return ModelOutput(
      predictions={self.output.name: shape_predictions(self.output, mixed.values)},
      features={"hidden": mixed.hidden, **streams},
      routing=dict(zip(names, mixed.routing, strict=True)),
    )

  @nn.nowrap
  def _branches(self, names, features, mask, train) -> ModelOutput:
    table = conditions(names)
    kept = jnp.asarray(list(table.values()))  # [branch m]
    # The same numbers for every branch: each is what a separate run would be.
    lifted = nn.vmap(
      Network,
      in_axes=cast(Any, (None, 0)),  # Flax takes more than its annotation says.
      variable_axes={"params": 0},
      split_rngs={"params": False, "dropout": False},
      axis_size=len(table),
    )
    branches = self._network(names, train, "branches", make=lifted)
    mixed = branches(features, mask[None] & kept[:, :, None, None])
    predictions, hidden, routing = {}, {}, {}
    values = shape_predictions(self.output, mixed.values)  # [branch b t ...]
    for branch, name in enumerate(table):
      predictions[f"{self.output.name}@{name}"] = values[branch]
      hidden[f"hidden@{name}"] = mixed.hidden[branch]
      gates = jax.tree.map(lambda leaf, i=branch: leaf[i], mixed.routing)
      routing |= _gates(names, gates, name, table[name])
    if not train:
      seen = _seen(mask, self.level)
      predictions[self.output.name] = own_branch(values, seen, kept)
    return ModelOutput(predictions, hidden, routing)


def _gates(
  names: tuple[str, ...],
  routing: Sequence[Routing],
  condition: str,
  kept: Sequence[bool],
) -> dict[str, Routing]:
  """Gates of the modalities that a condition keeps: `text@at`."""
  rows = zip(names, routing, kept, strict=True)
  return {f"{name}@{condition}": gate for name, gate, there in rows if there}


def _read(
  batch: Batch, names: tuple[str, ...]
) -> tuple[dict[str, Float[Array, "b t _"]], Bool[Array, "m b t"]]:
  """Features and visible steps by modality, padded to one number of steps."""
  lacking = [name for name in names if name not in batch.modalities]
  if lacking:
    raise UserError(
      f"the batch has no {lacking[0]}, only {', '.join(batch.order)}: make the model"
      " with modalities=(...) that the batches have."
    )
  steps = max(batch.modalities[name].mask.shape[1] for name in names)
  features, masks = {}, []
  for name in names:
    modality = batch.modalities[name]
    padding = [(0, 0), (0, steps - modality.mask.shape[1])]
    features[name] = jnp.pad(modality.features, [*padding, (0, 0)])
    masks.append(jnp.pad(modality.mask, padding))
  return features, jnp.stack(masks)


def _seen(mask: Bool[Array, "m b t"], level: str) -> Bool[Array, "m b ..."]:
  """Which modalities each predicted row has: [m b t] utterances, [m b] of frames."""
  return jnp.any(mask, axis=2) if level == "frame" else mask
