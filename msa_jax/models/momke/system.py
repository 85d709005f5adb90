"""MoMKE's training: experts of one modality each, then their mixture.

Stage 1 trains every modality's projection, expert and head by its own loss and keeps
the best validation epoch of each. Stage 2 starts from these parts and trains the
mixture, one model or one branch per condition.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from msa_jax.config.options import OptimConfig
from msa_jax.errors import UserError
from msa_jax.models.momke.conditions import conditions
from msa_jax.models.momke.network import MoMKE
from msa_jax.models.options import check, construct, defaults, split
from msa_jax.models.outputs import primary_output
from msa_jax.models.system import Changes, Options, Stage, System
from msa_jax.models.with_anchor import ANCHOR
from msa_jax.text.finetune import PARAMETERS as ENCODER
from msa_jax.typing import MODALITIES, Params, Spec

INITS = ("best_val", "last")
# Parts of the network that stage 1 trains; the first two go on into stage 2.
_EXPERTS, _HEADS = "experts", "heads"


@dataclasses.dataclass(frozen=True)
class StageOptions:
  """How training is divided in stages; options beside those of the network.

  Attributes:
    stage1_epochs: epochs of stage 1, of `config.optim.epochs`: 0 = no stage 1, all of
      them = no stage 2.
    stage2_init: where stage 2 starts: every modality's `best_val` epoch, or the `last`
      one, as the released code in fact does.
    carry_opt_state: stage 2 goes on with stage 1's optimizer state.
    freeze_experts: in stage 2, with their input projections.
  """

  stage1_epochs: int = 150
  stage2_init: str = "best_val"
  carry_opt_state: bool = False
  freeze_experts: bool = False

  def __post_init__(self):
    check(self, choices={"stage2_init": INITS})


def options() -> dict[str, Any]:
  """Options of the system (`config.model`): the fields of `MoMKE` and of
  `StageOptions`."""
  plan = dataclasses.asdict(StageOptions())
  return {"name": "momke", **defaults(MoMKE), **plan}


def build(options: Options, spec: Spec) -> MoMKE:
  """Builds the network for a corpus.

  Raises:
    UserError: a value out of range, or samples of the other level.
  """
  _, network = split(StageOptions, options)
  output = primary_output(options, spec)
  model = construct(MoMKE, network, output=output, modalities=spec.modalities)
  if bool(spec.utterances) != (model.level == "utterance"):
    unit = {"utterance": "dialogue", "frame": "utterance"}[model.level]
    raise UserError(
      f"config.model.level={model.level!r} needs config.data.sample_unit={unit!r}."
    )
  return model


def stages(
  options: Options, spec: Spec, optim: OptimConfig, monitor: str
) -> tuple[Stage, ...]:
  """The stages by `config.model.stage1_epochs` of `config.optim.epochs` in all.

  With no epochs for stage 1 there is only the second (ablation: random experts), with
  all of them only the first (ablation: the available modalities' outputs averaged).

  Raises:
    UserError: more epochs in stage 1 than in all, or an option out of range.
  """
  model, (plan, _) = build(options, spec), split(StageOptions, options)
  run = _Run(model, plan, optim.patience, monitor)
  first, total = plan.stage1_epochs, optim.epochs
  if not 0 <= first <= total:
    raise UserError(
      f"config.model.stage1_epochs={first} must be within 0 (no stage 1) and"
      f" config.optim.epochs={total} (no stage 2)."
    )
  if plan.carry_opt_state and model.is_branched:
    raise UserError(
      "config.model.carry_opt_state=True goes with one model: choose a"
      " config.model.condition other than 'all', or stage2_mask='mixed'."
    )
  sequence = []
  if first:
    sequence.append(_unimodal(run, first))
  if total > first:
    sequence.append(_mixing(run, total - first, bool(first)))
  return tuple(sequence)


class _Run(NamedTuple):
  """What both stages read: the network, how it is trained, the run's options."""

  model: MoMKE
  plan: StageOptions
  patience: int
  monitor: str


def _select(run: _Run, *heads: str) -> str:
  """`config.train.monitor` asked of these heads: the mean over them."""
  entries = []
  for entry in run.monitor.split(","):
    factor, star, rest = entry.strip().rpartition("*")
    metric = rest.rpartition("/")[2]
    task = run.model.output.name
    entries += [f"{factor}{star}{task}@{head}/{metric}" for head in heads]
  return ",".join(entries)


def _unimodal(run: _Run, epochs: int) -> Stage:
  model, names = run.model, run.model.modalities

  def keep(track: str, params: Params) -> Params:
    own = own_part(params["network"], track, names.index(track))
    # The text's expert goes with the encoder that it was trained with.
    encoder = {ENCODER: params[ENCODER]} if _encodes(track, params) else {}
    return {**own, **encoder}

  def compose(snapshots: Mapping[str, Params], final: Params) -> Params:
    network = dict(final["network"])
    if run.plan.stage2_init == "best_val":
      network = join_parts([snapshots[name] for name in names], names, network)
      if _encodes("text", final):
        final = {**final, ENCODER: snapshots["text"][ENCODER]}
    if not model.is_branched:
      return {**final, "network": network}
    branches = branched(network, final["branches"])
    return {**final, "network": network, "branches": branches}

  return Stage(
    name="unimodal",
    epochs=epochs,
    patience=run.patience,
    call={"stage": 1},
    missing=False,  # each expert knows its modality from complete data
    tracks={name: _select(run, name) for name in names},
    trainable=in_stage_1,
    keep=keep,
    compose=compose,
  )


def _encodes(track: str, params: Params) -> bool:
  return track == "text" and ENCODER in params


def in_stage_1(path: tuple[str, ...]) -> bool:
  """Whether a parameter is part of stage 1: projections, experts, their heads, and the
  text's encoder where one is trained."""
  top, part = path[:2]
  if top == ENCODER:
    return True
  return top == "network" and (
    part in (_EXPERTS, _HEADS) or part.startswith("in_proj_")
  )


def own_part(network: Params, name: str, index: int) -> Params:
  """One modality's input projection, expert and head."""
  stacks = {part: network[part] for part in (_EXPERTS, _HEADS)}
  own = jax.tree.map(lambda leaf: leaf[index], stacks)
  return {"in_proj": network[f"in_proj_{name}"], **own}


def join_parts(
  parts: Sequence[Params], names: Sequence[str], network: Params
) -> Params:
  """The network with every modality's own part; see `own_part`.

  An expert is meaningless with another epoch's projection, so they go together.
  """
  joined = dict(network)
  for index, (name, part) in enumerate(zip(names, parts, strict=True)):
    joined[f"in_proj_{name}"] = part["in_proj"]
    for stack in (_EXPERTS, _HEADS):
      joined[stack] = jax.tree.map(
        lambda leaf, own, i=index: leaf.at[i].set(own), joined[stack], part[stack]
      )
  return joined


def branched(network: Params, branches: Params) -> Params:
  """Branches that all start from the projections and experts of one network."""

  def spread(part, like):
    return jax.tree.map(lambda leaf, b: jnp.broadcast_to(leaf, b.shape), part, like)

  return {
    name: spread(network[name], part) if in_stage_1(("network", name)) else part
    for name, part in branches.items()
  }


def _mixing(run: _Run, epochs: int, after: bool) -> Stage:
  model, plan = run.model, run.plan
  stage = Stage(
    name="mixing",
    epochs=epochs,
    patience=run.patience,
    call={"stage": 2},
    trainable=_in_stage_2(model.is_branched, plan.freeze_experts),
    carry_opt_state=plan.carry_opt_state and after,
  )
  names = tuple(conditions(model.modalities))
  if model.is_branched:
    return stage._replace(
      branched=True,
      tracks={name: _select(run, name) for name in names},
      keep=lambda track, params: one_branch(params, names.index(track)),
      compose=join_branches,
    )
  if model.stage2_mask == "mixed":
    # One model for all conditions is chosen by all of them.
    return stage._replace(tracks={"selected": _select(run, *names)})
  return stage


def _in_stage_2(branched: bool, frozen: bool) -> Callable[[tuple[str, ...]], bool]:
  top = "branches" if branched else "network"

  def trainable(path: tuple[str, ...]) -> bool:
    if path[0] == ENCODER:  # one for all branches, which have nothing in common
      return not frozen and not branched
    if path[0] == ANCHOR:
      return True
    learnt = in_stage_1(("network", path[1]))
    return path[0] == top and path[1] != _HEADS and not (frozen and learnt)

  return trainable


def one_branch(params: Params, index: int) -> Params:
  """What a branch's snapshot keeps: its own parameters."""
  return jax.tree.map(lambda leaf: leaf[index], params["branches"])


def join_branches(snapshots: Mapping[str, Params], final: Params) -> Params:
  """Every branch at its own best epoch."""
  branches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *snapshots.values())
  return {**final, "branches": branches}


def _one_stage(options: Options) -> Changes:
  """As many epochs as both stages have, all of them in the first."""
  return {"model.stage1_epochs": options["optim"]["epochs"]}


# What the paper leaves out, and which experts it combines. The stages of all runs have
# as many epochs together.
ABLATIONS = {
  "parts": {
    "full": {},
    "no_stage_1": {"model.stage1_epochs": 0},
    "no_stage_2": _one_stage,
    "uniform": {"model.mixing": "uniform"},
    "own": {"model.mixing": "own"},
  },
  "experts": {
    "all": {},
    "own": {"model.mixing": "own"},
    **{f"own_{m}": {"model.mixing": f"own+{m}"} for m in MODALITIES},
  },
}

SYSTEM = System(
  build=build,
  stages=stages,
  units=("dialogue", "utterance"),
  ablations=ABLATIONS,
  search_space={
    "model.dropout": "0..0.6",
    "model.num_layers": "1..4",
  },
)
