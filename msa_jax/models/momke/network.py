"""MoMKE: a mixture of modality knowledge experts for incomplete modalities.

Source: "Leveraging Knowledge of Modality Experts for Incomplete Multimodal Learning"
(ACM MM 2024) and its released code, whose forward pass this is.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.layers.masking import hide_unavailable, masked_mean
from msa_jax.models.momke.blocks import MIXING, Mixed, Network
from msa_jax.models.momke.conditions import (
  conditions,
  kept_by,
  own_branch,
  sample_subsets,
)
from msa_jax.models.momke.experts import STYLES
from msa_jax.models.outputs import OutputSpec, primary_output, shape_predictions
from msa_jax.models.system import Options
from msa_jax.typing import Batch, ModelOutput, Routing, Spec

LEVELS = ("utterance", "frame")
MASKS = ("condition", "mixed")
ROUTERS = ("three_way", "two_way")


def options() -> ml_collections.ConfigDict:
  """Options of the model (`config.model`): the released code's."""
  return ml_collections.ConfigDict(
    {
      "name": "momke",
      "task": "auto",  # the task predicted; auto = sentiment, else emotion
      "level": "utterance",  # frame: one utterance's frames, pooled before the heads
      "D": 256,
      "depth": 4,
      "n_heads": 2,
      "mlp_ratio": 1,
      "drop": 0.5,
      "attn_drop": 0.0,
      "router_logit_dropout": 0.5,
      "expert_style": "official",  # preln: layer norms and an output projection
      "router": "three_way",  # two_way: own expert alpha, the others share beta
      "mixing": "router",  # uniform, own: ablations of the router
      "stage2_mask": "condition",  # mixed: one model for all conditions
      # Modalities a model of `condition` sees, by initials; all = one branch of
      # stage 2 for every condition, trained together.
      "condition": "atv",
      "stage1_epochs": 150,  # of optim.epochs: 0 = no stage 1, all = no stage 2
      "stage2_init": "best_val",  # last: as the released code really starts stage 2
      "carry_opt_state": False,  # stage 2 goes on with stage 1's optimizer state
      "freeze_experts": False,  # in stage 2, with their input projections
    }
  )


class MoMKE(nn.Module):
  """The model.

  Attributes:
    options: `config.model`, frozen.
    modalities: names in canonical order.
    widths: feature width of each.
    target: the task predicted.
  """

  options: ml_collections.FrozenConfigDict
  modalities: tuple[str, ...]
  widths: tuple[int, ...]
  target: OutputSpec

  @nn.compact
  def __call__(self, batch: Batch, *, train: bool, stage: int = 2) -> ModelOutput:
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
    """
    features, mask = _read(batch, self.modalities)
    network = self._network(train, "network")
    output = None
    # Initialisation creates the parameters of both stages, whichever is asked for.
    if stage == 1 or self.is_initializing():
      output = self._unimodal(network, features, mask, train)
    if stage == 2 or self.is_initializing():
      output = self._mixed(network, features, mask, train)
    return output

  @nn.nowrap
  def _mixed(self, network, features, mask, train) -> ModelOutput:
    if is_branched(self.options):
      return self._branches(features, mask, train)
    if self.options.stage2_mask == "condition":
      kept = jnp.asarray(kept_by(self.options.condition, self.modalities))
      return self._output(network(features, mask & kept[:, None, None]))
    if train:
      return self._output(network(features, mask & self._sampled(mask)))
    if self.is_initializing():
      return self._output(network(features, mask))
    return self._every_condition(network, features, mask)

  @nn.nowrap
  def _network(self, train: bool, name: str, make=Network) -> Network:
    return make(
      options=self.options,
      modalities=self.modalities,
      widths=self.widths,
      num_outputs=self.target.num_outputs,
      deterministic=not train,
      name=name,
    )

  @nn.nowrap
  def _unimodal(self, network, features, mask, train) -> ModelOutput:
    values, streams = network.unimodal(network.project(features), mask)
    task = self.target.name
    predictions = {
      f"{task}@{name}": shape_predictions(self.target, values[column])
      for column, name in enumerate(self.modalities)
    }
    if not train:
      seen = _seen(mask, self.options.level)[..., None]
      mean = masked_mean(values, jnp.broadcast_to(seen, values.shape), 0)
      predictions[task] = shape_predictions(self.target, mean)
    features = {f"y_{n}": streams[column] for column, n in enumerate(self.modalities)}
    return ModelOutput(predictions, features, {}, {})

  @nn.nowrap
  def _sampled(self, mask: Bool[Array, "m b t"]) -> Bool[Array, "m b _"]:
    """Modalities of each row that this training step shows."""
    seen = jnp.moveaxis(_seen(mask, self.options.level), 0, -1)  # [b t m] or [b m]
    kept = jnp.moveaxis(sample_subsets(self.make_rng("noise"), seen), -1, 0)
    return kept if kept.ndim == 3 else kept[..., None]

  @nn.nowrap
  def _every_condition(self, network, features, mask) -> ModelOutput:
    """The rows as they are, then under every condition, as one larger batch."""
    table = conditions(self.modalities)
    kept = [(True,) * len(self.modalities), *table.values()]
    shown = [mask & jnp.asarray(some)[:, None, None] for some in kept]
    tiled = {name: jnp.tile(x, (len(kept), 1, 1)) for name, x in features.items()}
    mixed = network(tiled, jnp.concatenate(shown, axis=1))
    size = mask.shape[1]

    def part(index):
      rows = slice(index * size, (index + 1) * size)
      routing = jax.tree.map(lambda leaf: leaf[rows], mixed.routing)
      streams = mixed.streams[:, rows]
      return Mixed(mixed.values[rows], mixed.hidden[rows], streams, routing)

    output = self._output(part(0))
    predictions, routing = dict(output.predictions), dict(output.routing)
    for index, (name, some) in enumerate(table.items(), start=1):
      one = part(index)
      head = f"{self.target.name}@{name}"
      predictions[head] = shape_predictions(self.target, one.values)
      routing |= self._gates(one.routing, name, some)
    return output.replace(predictions=predictions, routing=routing)

  @nn.nowrap
  def _gates(self, routing, condition: str, kept: Sequence[bool]) -> dict[str, Routing]:
    """Gates of the modalities that a condition keeps: `text@at`."""
    rows = zip(self.modalities, routing, kept, strict=True)
    return {f"{name}@{condition}": gate for name, gate, there in rows if there}

  @nn.nowrap
  def _output(self, mixed: Mixed) -> ModelOutput:
    names = self.modalities
    return ModelOutput(
      predictions={self.target.name: shape_predictions(self.target, mixed.values)},
      features={
        "hidden": mixed.hidden,
        **{f"r_{name}": mixed.streams[column] for column, name in enumerate(names)},
      },
      routing=dict(zip(names, mixed.routing, strict=True)),
      losses={},
    )

  @nn.nowrap
  def _branches(self, features, mask, train) -> ModelOutput:
    table = conditions(self.modalities)
    kept = jnp.asarray(list(table.values()))  # [branch m]
    # The same numbers for every branch: each is what a run of its own would be.
    lifted = nn.vmap(
      Network,
      in_axes=(None, 0),
      variable_axes={"params": 0},
      split_rngs={"params": False, "dropout": False},
      axis_size=len(table),
    )
    branches = self._network(train, "branches", make=lifted)
    mixed = branches(features, mask[None] & kept[:, :, None, None])
    predictions, hidden, routing = {}, {}, {}
    values = shape_predictions(self.target, mixed.values)  # [branch b t ...]
    for branch, name in enumerate(table):
      predictions[f"{self.target.name}@{name}"] = values[branch]
      hidden[f"hidden@{name}"] = mixed.hidden[branch]
      gates = jax.tree.map(lambda leaf, i=branch: leaf[i], mixed.routing)
      routing |= self._gates(gates, name, table[name])
    if not train:
      seen = _seen(mask, self.options.level)
      predictions[self.target.name] = own_branch(values, seen, kept)
    return ModelOutput(predictions, hidden, routing, {})


def _read(
  batch: Batch, names: tuple[str, ...]
) -> tuple[dict[str, Float[Array, "b t _"]], Bool[Array, "m b t"]]:
  """Features and visible steps by modality, padded to one number of steps."""
  batch = hide_unavailable(batch)
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


def is_branched(options: ml_collections.FrozenConfigDict) -> bool:
  """Whether stage 2 trains one branch per condition."""
  return options.stage2_mask == "condition" and options.condition == "all"


def build(options: Options, spec: Spec) -> MoMKE:
  """Builds the model for a corpus.

  Raises:
    UserError: a value out of range.
  """
  model = ml_collections.FrozenConfigDict(options)
  _check(model)
  grouped = bool(spec.utterances)
  if grouped != (model.level == "utterance"):
    unit = {"utterance": "dialogue", "frame": "utterance"}[model.level]
    raise UserError(
      f"config.model.level={model.level!r} needs config.data.sample_unit={unit!r}."
    )
  modalities = spec.modalities
  if model.condition != "all":
    kept_by(model.condition, modalities)
  return MoMKE(
    options=model,
    modalities=modalities,
    widths=tuple(spec.widths[name] for name in modalities),
    target=primary_output(options, spec),
  )


_CHOICES = {
  "level": LEVELS,
  "expert_style": STYLES,
  "router": ROUTERS,
  "mixing": MIXING,
  "stage2_mask": MASKS,
}


def _check(model: ml_collections.FrozenConfigDict) -> None:
  for key, known in _CHOICES.items():
    if model[key] not in known:
      raise UserError(f"config.model.{key}={model[key]!r} must be one of {known}.")
  for key in ("drop", "attn_drop", "router_logit_dropout"):
    if not 0.0 <= model[key] < 1.0:
      raise UserError(f"config.model.{key}={model[key]} must be in [0, 1).")
  for key in ("D", "depth", "n_heads", "mlp_ratio"):
    if model[key] < 1:
      raise UserError(f"config.model.{key}={model[key]} must be positive.")
  if model.D % model.n_heads:
    raise UserError(
      f"config.model.n_heads={model.n_heads} must divide config.model.D={model.D}."
    )
