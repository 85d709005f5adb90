"""H-GEM as a system: its options, how it is built, its route losses.

Source: H-GEM: hierarchical gated expert mixture for multimodal sentiment analysis,
Computer Systems & Applications 2026, 35(3):59-68.

Every gate moves predictions. Mean change of a prediction in [-3, 3] where a gate gives
one candidate e^3 times the weight of another, for each candidate in order (default
configuration on the synthetic corpus, test split; after two epochs the error is .64):

  gate     candidates                     at the start     after two epochs
  Gate 0   text, audio, vision            .38  .26  .43    .33  .29  .34
  Gate 1   sparse, dense, robust          .13  .13  .18    .13  .14  .16
  Gate 2   negative, neutral, positive    .18  .15  .23    .23  .24  .17
  Gate 3   negative, neutral, positive    .14  .14  .04    .08  .20  .10

That a gate can move predictions does not say that it chooses well. With the default
losses its choice is worth nothing: trained to the end (three seeds, test MAE .631, 1.10
times Bayes-optimal), `evaluate --experts` finds that samples may exchange their
decisions (gates 0, 1, 2: MAE worse by .000, .004, .004) and that a fusion expert may go
(at most .007), while modalities may not (.122, .094, .081). Gates 0 to 2 stay at .96,
1.00 and .95 of the entropy of an even choice. `config.loss.information_gate1` is the
loss that asks Gate 1 to decide, `config.optim.learning_rates.gate` the gates' rate:
with the variant `specialised` one seed was selected with gates 1, 2 at .37, .57
(.09 and .20 at its last epoch), validation MAE .589 (.606 without), test .614, 1.07
times Bayes-optimal.

With `gates.modality_scale="outputs"`, as in versions before 0.2, Gate 0 moves them by
less than .01: the norms of the next layer erase what it does.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from msa_jax.errors import UserError
from msa_jax.layers.masking import has_content
from msa_jax.losses.routing import (
  discriminative,
  info_nce,
  load_balance,
  routing_information,
)
from msa_jax.models.hgem.embedding import check_length
from msa_jax.models.hgem.network import HGEM
from msa_jax.models.options import construct, defaults
from msa_jax.models.outputs import OutputSpec, primary_output
from msa_jax.models.system import Options, System
from msa_jax.typing import Batch, ModelOutput, Routing, Spec

PRESETS = ("small", "paper")

# Dimensions and parameter budget of the paper, and Eqs. 4 and 12 to the letter.
_PAPER: Options = {
  "token_dim": 768,
  "fused_dim": 256,
  "num_heads": 8,
  "text_expert": {"ffn_dim": 3072},
  "vision_expert": {"ffn_dim": 1024},
  "audio_expert": {"lstm_dim": 256},
  "sparse_expert": {"num_layers": 2, "ffn_dim": 3072, "keep_share_of": "nominal"},
  "dense_expert": {"hidden_dim": 2048},
  "robust_expert": {"hidden_dim": 1024, "denoiser_dim": 1024, "slot_dropout": 0.0},
  "polarity_experts": {"hidden_dim": 1024},
  "gates": {"hidden_dims": (2048, 2048, 480, 480)},
  "info_guided_norm": False,
  "head_dim": 64,
}


def options(preset: str = "small") -> dict[str, Any]:
  """Options of the model (`config.model`): the fields of `HGEM`, and `task`, the task
  predicted (auto = sentiment, else emotion).

  Args:
    preset: `paper` (dimensions and parameter budget of the paper) or `small` (the
      same network, narrow; for laptops and tests).

  Raises:
    UserError: unknown preset.
  """
  if preset not in PRESETS:
    raise UserError(f"preset {preset!r} must be one of {PRESETS}")
  found = {"name": "hgem", **defaults(HGEM)}
  for name, value in (_PAPER if preset == "paper" else {}).items():
    found[name] = {**found[name], **value} if isinstance(value, Mapping) else value
  return found


def build(options: Options, spec: Spec) -> HGEM:
  """Builds the network for a corpus.

  Args:
    options: see the function `options`.
    spec: of the corpus.

  Raises:
    UserError: a value out of range, or one that contradicts the corpus.
  """
  output = primary_output(options, spec)
  model = construct(HGEM, options, output=output, modalities=spec.modalities)
  for modality in spec.modalities:
    check_length(modality, spec.lengths[modality], model.max_steps)
  return model


def route_classes(
  output: OutputSpec, batch: Batch
) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
  """Class of every sample with content for the route losses, and which have one.

  Of a real-valued label its polarity (y < 0, = 0, > 0); of several yes/no questions
  the first answered with yes; else the label itself.
  """
  label = batch.labels[output.name]
  real = label.mask & batch.sample_mask & has_content(batch)
  if output.kind == "classes":
    return label.value.astype(jnp.int32), real
  if output.kind == "binary":
    yes = label.value == 1  # [b c]
    return jnp.argmax(yes, axis=-1).astype(jnp.int32), real & jnp.any(yes, axis=-1)
  polarity = jnp.sign(jnp.where(real, label.value, 0.0)) + 1
  return polarity.astype(jnp.int32), real


def auxiliary(
  model: HGEM,
  output: ModelOutput,
  batch: Batch,
  progress: Float[Array, ""],
) -> Mapping[str, jax.Array]:
  """Raw auxiliary losses, each a scalar over the batch's samples with content.

  Args:
    model: the network.
    output, batch: predictions and labels.
    progress: share of all steps done; no loss depends on it.

  Returns:
    `route_discrimination` (Eq. 10) and `route_mi` (-I_NCE, Eq. 11) of Gate 2's routes,
    zero without labels; `denoising`, the denoiser's error; `load_balance` of Gate 1
    (1 = even); `information_<gate>` of gates 0 to 2, minus the information in nats that
    the gate's choice has about the sample (`sample_information`). Zero for what an
    ablation leaves out.
  """
  del progress
  content = batch.sample_mask & has_content(batch)
  discrimination = information = jnp.zeros(())
  routes = output.routing["gate2"].probs
  if model.output.name in batch.labels:
    classes, real = route_classes(model.output, batch)
    real = real & jnp.any(routes > 0, axis=-1)
    discrimination = discriminative(routes, classes, real)
    information = info_nce(
      output.features["class_scores"], classes, real, model.route_temperature
    )
  return {
    "route_discrimination": discrimination,
    "route_mi": information,
    "denoising": output.losses["denoising"],
    "load_balance": load_balance(output.routing["gate1"], content),
    **{
      f"information_{gate}": -sample_information(output.routing[gate], content)
      for gate in INFORMED_GATES
      if gate in output.routing
    },
  }


# Gates whose choices may be made to say something of the sample; Gate 3 chooses among
# what Gate 2 has selected.
INFORMED_GATES = ("gate0", "gate1", "gate2")
GATES = "gate"  # the optimizer's partition of the gates


def sample_information(routing: Routing, rows: Bool[Array, " b"]) -> Float[Array, ""]:
  """I(sample; expert) = H(mean distribution) - mean H(distribution), in nats.

  The reading of the paper's information constraint that needs no label: a gate has it
  that is sure of each sample and uses all of its candidates. Among samples that lack a
  candidate (a modality), what is absent would count as a choice: only those count that
  have every candidate any sample of the batch has.

  Args:
    routing: of a gate.
    rows: samples that count.
  """
  there = routing.probs > 0
  offered = jnp.any(there & rows[:, None], axis=0, keepdims=True)
  whole = jnp.all(there | ~offered, axis=1)
  return routing_information(routing.probs, rows & whole)


def partition(path: tuple[str, ...]) -> str:
  """Gates may train with a rate of their own, `config.optim.learning_rates.gate`."""
  return GATES if path[0].startswith("gate") else "new"


# Ways to combine the experts (table 3).
FUSIONS = {
  name: {"model.fusion": name} for name in ("average", "fixed", "single", "multi")
}


def selecting_module(options: Options) -> str:
  """Name of the expert whose attention keeps the top k keys (Eqs. 3, 4), if it runs."""
  layered = options.get("fusion", "multi") not in ("average", "fixed")
  left_out = "sparse" in options.get("disabled_experts", ())
  return "sparse" if layered and not left_out else ""


SYSTEM = System(
  build=build,
  auxiliary=auxiliary,
  partition=partition,
  own_rates=(GATES,),
  losses={f"information_{gate}": 0.0 for gate in INFORMED_GATES},
  sees_dropped=True,
  ablations={"fusion": FUSIONS},
  router_variants=FUSIONS,
  robustness={"without_robust": {"model.disabled_experts": ("robust",)}},
  attention=selecting_module,
  search_space={
    "model.dropout.embed": "0..0.6",
    "model.dropout.ffn": "0..0.5",
    "model.dropout.gate": "0..0.5",
    "model.dropout.expert": "0..0.5",
    "model.dropout.head": "0..0.5",
    "loss.route_discrimination": "0.01..1:log",
    "loss.route_mi": "0.01..0.5:log",
    "loss.information_gate1": "0..0.5",
    "optim.learning_rates.gate": "0,1e-3,3e-3",
  },
)
