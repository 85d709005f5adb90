"""MMoLRE as a system: its options, how it is built, how its tasks are weighed.

Source: Multimodal Mixture of Low-Rank Experts for Sentiment Analysis and Emotion
Recognition, arXiv 2505.14143 (ICME 2025). No code of the authors is public.

What is theirs and what is ours:

- The abstract states: sentiment and emotion learned together; shared and task-specific
  experts in place of hard parameter sharing; low-rank expert networks, so that
  parameters and computation stay small as experts multiply.
- Two public reviews of the method add: text and audio; stacked unimodal blocks of N
  shared experts, one own expert and one router per task; an expert is a convolution of
  size 3 to r_n channels and one of size 1 back.
- Everything else is ours: number and ranks of experts, activation, norms and residual,
  the router's input and softmax, the whole fusion, the heads, the losses and their
  balance, all sizes and the training recipe.

No figure of the paper is quoted: the abstract has none that could be checked against a
table. Each of our choices is an option below, with the other readings as its values.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from msa_jax.errors import UserError
from msa_jax.losses.routing import importance_cv2
from msa_jax.models.mmolre.network import MMoLRE
from msa_jax.models.options import construct, defaults
from msa_jax.models.outputs import output_specs
from msa_jax.models.system import Changes, Options, Placed, System, TaskTerm
from msa_jax.names import split_names
from msa_jax.typing import Batch, ModelOutput, Spec


def options() -> dict[str, Any]:
  """Options of the model (`config.model`): the fields of `MMoLRE`.

  Two are read against the corpus: `tasks`, those predicted (() = sentiment and
  emotion, as the corpus has), and `modalities`, those used of the ones that the corpus
  has (() = all).
  """
  fields = defaults(MMoLRE)
  del fields["task"]
  return {
    "name": "mmolre",
    "tasks": (),
    "modalities": ("text", "audio"),
    **fields,
  }


def losses() -> dict[str, object]:
  """Options of the objective that this system adds to `config.loss`.

  Returns:
    `sentiment` (`l1`, `mse`, `huber`; `cross_entropy` for classes) and `emotion`
    (cross-entropy, binary for yes/no questions), the losses; `emotion_weight`, where
    that of sentiment is one; `emotion_positive_weight`, factors of present emotions,
    yes/no questions only: one for all or one for each; `load_balance`, weight of the
    routers' imbalance.
  """
  return {
    "sentiment": "default",
    "emotion": "default",
    "emotion_weight": 1.0,
    "emotion_positive_weight": (),
    "load_balance": 0.0,
  }


def modalities_of(options: Options, spec: Spec) -> tuple[str, ...]:
  """The modalities used, in canonical order: those of the options the corpus has.

  Raises:
    UserError: the corpus has none of them.
  """
  known = spec.modalities
  chosen = split_names(options["modalities"])
  used = tuple(name for name in known if not chosen or name in chosen)
  if not used:
    raise UserError(
      f"model.modalities={chosen}: the corpus has none of them (it has {known})"
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
  fields = {name: value for name, value in options.items() if name != "modalities"}
  return construct(
    MMoLRE,
    fields,
    outputs=output_specs(options, spec),
    modalities=modalities_of(options, spec),
  )


def terms(loss: Options, spec: Spec) -> Mapping[str, TaskTerm]:
  """Loss and weight of each task: `config.loss.sentiment`, `emotion`,
  `emotion_weight`; any other task of the corpus has its default loss."""
  found = {name: TaskTerm() for name in spec.tasks}
  found["sentiment"] = TaskTerm(loss["sentiment"])
  positive = loss["emotion_positive_weight"]
  positive = tuple(positive) if isinstance(positive, list | tuple) else (positive,)
  found["emotion"] = TaskTerm(loss["emotion"], loss["emotion_weight"], positive)
  return found


def auxiliary(
  model: nn.Module,
  output: ModelOutput,
  batch: Batch,
  progress: Float[Array, ""],
) -> Mapping[str, jax.Array]:
  """`load_balance`: mean over routers of the squared coefficient of variation of the
  experts' summed probabilities; 0 = even."""
  del model, progress
  routers = [r for name, r in output.routing.items() if name.startswith("router_")]
  values = [importance_cv2(r.probs, batch.sample_mask) for r in routers]
  return {"load_balance": jnp.mean(jnp.stack(values))}


def shared(path: tuple[str, ...]) -> str:
  """What the tasks share: `experts` of UniTSE and the cross-attention (`fusion`)."""
  if path[0].startswith("unitse_"):
    return "experts" if path[1].startswith("shared_") else ""
  cross = path[0] == "fusion" and path[1].startswith("cross_")
  return "fusion" if cross else ""


def _ranks(options: Options) -> tuple[tuple[int, ...], int]:
  """Ranks of the shared experts, and that of a task's own."""
  return tuple(options["model"]["shared_ranks"]), options["model"]["task_rank"]


def _hard(options: Options) -> Changes:
  """One stream for both tasks, whose own experts are shared ones: as many ranks."""
  ranks, own = _ranks(options)
  return {"model.sharing": "hard", "model.shared_ranks": (*ranks, own, own)}


def _specific(options: Options) -> Changes:
  """The shared ranks divided among two tasks: as many ranks."""
  ranks, own = _ranks(options)
  return {"model.sharing": "specific", "model.task_rank": sum(ranks) // 2 + own}


def _equal(count: int, options: Options) -> Changes:
  """As many shared ranks in all, by a number of experts of one rank (or one more)."""
  total = sum(_ranks(options)[0])
  ranks = tuple((total + index) // count for index in range(count))
  return {"model.shared_ranks": ranks}


def _more(count: int, full_rank: bool, options: Options) -> Changes:
  """A number of shared experts, each of the default's mean rank."""
  ranks, _ = _ranks(options)
  each = max(sum(ranks) // len(ranks), 1)
  return {"model.shared_ranks": (each,) * count, "model.full_rank": full_rank}


_GROUPS = {"low_rank": False, "full_rank": True}
# The first run of each table is the system itself, but for `number`'s curves.
ABLATIONS = {
  # `hard` and `specific` have what the mixture has of one kind, `..._equal` as many
  # ranks in all.
  "sharing": {
    "mixed": {},
    "hard": {"model.sharing": "hard"},
    "hard_equal": _hard,
    "specific": {"model.sharing": "specific"},
    "specific_equal": _specific,
  },
  # A task alone has the ranks that it has in the mixture: what sharing gains or loses.
  "tasks": {
    "both": {},
    "sentiment": {"model.tasks": ("sentiment",)},
    "emotion": {"model.tasks": ("emotion",)},
  },
  "ranks": {
    "mixed_ranks": {},
    **{f"equal_{n}": functools.partial(_equal, n) for n in (1, 2, 4, 8)},
  },
  "number": {
    f"{group}_{n}": Placed(
      functools.partial(_more, n, full), "shared experts", n, group
    )
    for group, full in _GROUPS.items()
    for n in (1, 2, 4, 8)
  },
  "blocks": {
    f"blocks_{n}": Placed({"model.num_blocks": n}, "blocks", n) for n in (1, 2, 3)
  },
}

SYSTEM = System(
  build=build,
  auxiliary=auxiliary,
  terms=terms,
  shared=shared,
  reads=modalities_of,
  ablations=ABLATIONS,
  search_space={
    "model.dropout": "0..0.5",
    "model.attention_dropout": "0..0.5",
    "loss.load_balance": "0..0.1",
  },
)
