"""MMoLRE as a system: its options, how it is built, how its tasks are weighed.

Source: Multimodal Mixture of Low-Rank Experts for Sentiment Analysis and Emotion
Recognition, arXiv 2505.14143 (ICME 2025). No code of the authors is public.

What is theirs and what is ours:

  abstract     sentiment and emotion learned together; shared and task-specific experts
               in place of hard parameter sharing; low-rank expert networks, so that
               parameters and computation stay small as experts multiply.
  summaries    (two public reviews of the method) text and audio; stacked unimodal
               blocks of N shared experts, one own expert and one router per task; an
               expert is a convolution of size 3 to r_n channels and one of size 1 back.
  ours         everything else: number and ranks of experts, activation, norms and
               residual, the router's input and softmax, the whole fusion, the heads,
               the losses and their balance, all sizes and the training recipe.

No figure of the paper is quoted: the abstract has none that could be checked against a
table. Each of our choices is an option below, with the other readings as its values.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from msa_jax.errors import UserError
from msa_jax.layers.lowrank import ACTIVATIONS, FORMS, SECOND_INITS
from msa_jax.losses.routing import importance_cv2
from msa_jax.models.mmolre.network import MMoLRE
from msa_jax.models.outputs import output_specs
from msa_jax.models.system import Options, System, TaskTerm
from msa_jax.typing import Batch, ModelOutput, Spec

_CHOICES = {
  "sharing": ("mixed", "hard", "specific"),
  "act": tuple(ACTIVATIONS),
  "router_level": ("utterance", "token"),
  "router_scope": ("all", "shared_only"),
  "w2_init": SECOND_INITS,
  "fusion": ("cross_gate", "gate_only", "concat", "query"),
  "dispatch": FORMS,
  "task_weights": ("fixed", "uncertainty"),
  "dtype": ("float32", "bfloat16"),
}


def options() -> ml_collections.ConfigDict:
  """Options of the model (`config.model`).

  Ablations: `sharing=hard` (one stream and one router for all tasks, no own experts),
  `sharing=specific` (own experts only), `full_rank=True` (every rank = d), `ranks` of
  any number and size, `n_blocks=1`.
  """
  return ml_collections.ConfigDict(
    {
      "name": "mmolre",
      "tasks": (),  # tasks predicted; () = sentiment and emotion, as the corpus has
      "modalities": ("text", "audio"),  # of those the corpus has; () = all
      "d": 768,
      "n_blocks": 2,
      "ranks": (16, 32, 64, 128),  # of the shared experts
      "ts_rank": 64,  # of each task's own expert
      "full_rank": False,
      "sharing": "mixed",
      "share_blocks": False,  # the same shared experts in every block of a modality
      "act": "gelu",
      "kernel": 3,
      "residual": True,
      "router_level": "utterance",
      "router_scope": "all",  # shared_only: a task's own expert has weight one
      "top_k": 0,  # experts used per router; 0 = all
      "w2_init": "zeros",
      "dispatch": "fused",  # plain: a loop over experts, for comparison
      "fusion": "cross_gate",
      "n_heads": 8,
      "ffn": 1024,
      "head_hidden": 256,
      "dropout": 0.1,
      "attn_dropout": 0.1,
      "dtype": "float32",
      # of the tasks' losses; uncertainty: learned log variances s, exp(-s) L + s
      "task_weights": "fixed",
    }
  )


def losses() -> dict[str, object]:
  """Options of the objective that this system adds to `config.loss`."""
  return {
    "sa": "default",  # of sentiment: l1, mse, huber; cross-entropy for classes
    "er": "default",  # of emotion: (binary) cross-entropy
    "er_weight": 1.0,  # of the emotion loss, that of sentiment being one
    "er_pos_weight": (),  # of present emotions, yes/no questions only: one or c numbers
    "bal": 0.0,  # of the routers' imbalance: squared variation of experts' shares
  }


def modalities_of(options: Options, spec: Spec) -> tuple[str, ...]:
  """The modalities used, in canonical order: those of the options the corpus has.

  Raises:
    UserError: the corpus has none of them.
  """
  known = spec.modalities
  # `--config.model.modalities=text,audio` arrives as one string.
  chosen = [name for entry in options["modalities"] for name in entry.split(",")]
  used = tuple(name for name in known if not chosen or name in chosen)
  if not used:
    raise UserError(
      f"model.modalities={tuple(chosen)}: the corpus has none of them (it has {known})"
    )
  return used


def build(options: Options, spec: Spec) -> MMoLRE:
  """Builds the network for a corpus.

  Args:
    options: see the function `options`.
    spec: of the corpus.

  Raises:
    UserError: a value out of range, or one that contradicts the corpus.
  """
  model = ml_collections.FrozenConfigDict(options)
  _check(model)
  return MMoLRE(
    options=model,
    modalities=modalities_of(options, spec),
    targets=output_specs(options, spec),
    uncertainty=model.task_weights == "uncertainty",
    dtype=jnp.bfloat16 if model.dtype == "bfloat16" else jnp.float32,
  )


def _check(model: ml_collections.FrozenConfigDict) -> None:
  for key, choices in _CHOICES.items():
    if model[key] not in choices:
      raise UserError(f"model.{key}={model[key]!r}: choose one of {choices}")
  for key in ("d", "n_blocks", "ts_rank", "kernel", "n_heads", "ffn", "head_hidden"):
    if model[key] < 1:
      raise UserError(f"model.{key}={model[key]}: must be at least 1")
  if model.top_k < 0:
    raise UserError(f"model.top_k={model.top_k}: must be 0 (all experts) or positive")
  if min(model.ranks, default=0) < 1 and model.sharing != "specific":
    raise UserError(
      f"model.ranks={model.ranks}: give at least one shared expert, of rank 1 or more,"
      " or choose model.sharing='specific'"
    )
  if model.d % model.n_heads:
    raise UserError(f"model.n_heads={model.n_heads}: must divide model.d={model.d}")
  for site in ("dropout", "attn_dropout"):
    if not 0.0 <= model[site] < 1.0:
      raise UserError(f"model.{site}={model[site]}: must be in [0, 1)")


def terms(loss: Options, spec: Spec) -> Mapping[str, TaskTerm]:
  """Loss and weight of each task: `config.loss.sa`, `er`, `er_weight`; any other task
  of the corpus has its default loss."""
  found = {name: TaskTerm() for name in spec.tasks}
  found["sentiment"] = TaskTerm(loss["sa"])
  positive = tuple(loss["er_pos_weight"])
  found["emotion"] = TaskTerm(loss["er"], loss["er_weight"], positive)
  return found


def auxiliary(
  model: nn.Module,
  output: ModelOutput,
  batch: Batch,
  progress: Float[Array, ""],
) -> Mapping[str, jax.Array]:
  """`bal`: imbalance of the routers, mean over them of the squared coefficient of
  variation of the experts' summed probabilities; 0 = even."""
  del model, progress
  routers = [r for name, r in output.routing.items() if name.startswith("router_")]
  values = [importance_cv2(r.probs, batch.sample_mask) for r in routers]
  return {"bal": jnp.mean(jnp.stack(values))}


def shared(path: tuple[str, ...]) -> str:
  """What the tasks share: `experts` of UniTSE and the cross-attention (`fusion`)."""
  if path[0].startswith("unitse_"):
    return "experts" if path[1].startswith("shared_") else ""
  cross = path[0] == "fusion" and path[1].startswith("cross_")
  return "fusion" if cross else ""


SYSTEM = System(build=build, auxiliary=auxiliary, terms=terms, shared=shared)
