"""Any system, anchored in text: it predicts a correction of what text alone says.

With h(t) the linear head of `text_only` on the pooled text t of a sample (or utterance
of a dialogue), f(x) the system's own prediction from all modalities x, and s a scale
that is learned for each task and begins at `config.anchor.scale` (.1):

  y = h(t) + s f(x)    where text is seen,
  y = f(x)             where it is not.

Of classes, y, h and f are logits. Where text is missing, unavailable or lost, or hidden
by the system itself (`ModelOutput.text_seen`), the correction carries all: the
prediction is f(x) to the bit, and gradients reach the system with factor 1 and the head
and its scale not at all. f reads the same masks, so it can tell the two cases apart.

The head reads what the system reads: with an encoder inside, the encoder's states, so
that the encoder learns from both. Wrappers go in this order around a network: anchor,
then text encoder; B-fusion balances what comes of it.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.config.options import AnchorConfig
from msa_jax.errors import UserError
from msa_jax.models.outputs import OutputSpec
from msa_jax.models.text_only import TextHeads, read_text
from msa_jax.typing import Batch, ModelOutput, Spec, task_name

# First part of the path of the anchor's parameters, and the head of the prediction
# `<task>@anchor`: what text alone says.
ANCHOR = "anchor"
HEADS = "heads"  # second part of the path of its heads' parameters
SCALE = "scale_"  # before the task in the name of a scale


class Anchor(nn.Module):
  """The text-only heads, and the scale of each task's correction.

  Attributes:
    outputs: the tasks.
    dropout: rate on the pooled text.
    scale: where the scales begin.
  """

  outputs: tuple[OutputSpec, ...]
  dropout: float
  scale: float

  @nn.compact
  def __call__(
    self, pooled: Float[Array, "b ... d"], *, train: bool
  ) -> tuple[dict[str, Float[Array, "b ..."]], dict[str, Float[Array, ""]]]:
    """Task -> prediction, and task -> scale."""
    heads = TextHeads(self.outputs, self.dropout, name=HEADS)(pooled, train=train)
    begin = nn.initializers.constant(self.scale)
    scales = {
      output.name: self.param(SCALE + output.name, begin, ()) for output in self.outputs
    }
    return heads, scales


class WithAnchor(nn.Module):
  """A system whose prediction corrects that of text alone; formula above. The anchor's
  parameters lie beside the system's own, under `anchor`.

  Attributes:
    anchored: the system's module.
    outputs: the tasks that it predicts.
    pool: see `text_only.TextOnly`.
    dropout, scale: see `Anchor`.
  """

  anchored: nn.Module
  outputs: tuple[OutputSpec, ...]
  pool: str = "mean"
  dropout: float = 0.1
  scale: float = 0.1

  def setup(self):
    nn.share_scope(self, self.anchored)
    self.anchor = Anchor(self.outputs, self.dropout, self.scale)

  def __call__(self, batch: Batch, *, train: bool = False, **call: Any) -> ModelOutput:
    """The system's output with corrected predictions; in evaluation also
    `<task>@anchor`, what the text-only head says."""
    output = self.anchored(batch, train=train, **call)
    pooled, seen = read_text(batch, self.pool)
    return self.corrected(output, pooled, seen, train)

  def hooks_of_anchored(self, batch: Batch, train: bool) -> Any:
    """What the system's module changes of a text encoder's states."""
    return self.anchored.hooks(batch, train)

  def corrected(
    self,
    output: ModelOutput,
    pooled: Float[Array, "b ... d"],
    seen: Bool[Array, "b ..."],
    train: bool,
  ) -> ModelOutput:
    """Adds the system's predictions to those of text alone.

    Args:
      output: of the system.
      pooled, seen: from `read_text`.
      train: whether dropout happens.
    """
    heads, scales = self.anchor(pooled, train=train)
    predictions = {}
    for name, own in output.predictions.items():
      task = task_name(name)
      if task not in heads:  # not among what the system says it predicts
        predictions[name] = own
        continue
      with_text = heads[task] + scales[task] * own
      shown = seen & output.text_seen.get(name, True)
      shown = shown.reshape(*shown.shape, *[1] * (own.ndim - shown.ndim))
      predictions[name] = jnp.where(shown, with_text, own)
    if not train:
      alone = {f"{t}@{ANCHOR}": y for t, y in heads.items() if t in predictions}
      predictions |= alone
    return output.replace(predictions=predictions)


class WithAnchorInTwoParts(WithAnchor):
  """The same around a system that B-fusion can balance: its weights scale what goes
  into the correction, and the pooled text travels beside the features."""

  def encode(
    self, batch: Batch, *, train: bool = False
  ) -> Mapping[str, Float[Array, "b d"]]:
    """The system's own, and the pooled text."""
    pooled, _ = read_text(batch, self.pool)
    return {**self.anchored.encode(batch, train=train), ANCHOR: pooled}

  def tail(
    self, features: Any, omega: Any, batch: Batch, *, train: bool = False
  ) -> ModelOutput:
    """The system's own, corrected."""
    own = {name: values for name, values in features.items() if name != ANCHOR}
    output = self.anchored.tail(own, omega, batch, train=train)
    _, seen = read_text(batch, self.pool)
    return self.corrected(output, features[ANCHOR], seen, train)


def with_anchor(
  inner: nn.Module, options: AnchorConfig, outputs: Sequence[OutputSpec], spec: Spec
) -> nn.Module:
  """A system's network, anchored in text by `config.anchor`.

  Args:
    inner: the network.
    options: how.
    outputs: the tasks that it predicts.
    spec: of the corpus.

  Raises:
    UserError: the corpus has no text.
  """
  if "text" not in spec.modalities:
    raise UserError(
      f"config.anchor.to='text': the corpus has {', '.join(spec.modalities)} only;"
      " choose 'none', or config.data.modalities with text."
    )
  parts = hasattr(inner, "encode") and hasattr(inner, "tail")
  made = WithAnchorInTwoParts if parts else WithAnchor
  return made(
    anchored=inner,
    outputs=tuple(outputs),
    pool=options.pool,
    dropout=options.dropout,
    scale=options.scale,
  )


def beside_anchor(
  own: Callable[[tuple[str, ...]], str], name: str
) -> Callable[[tuple[str, ...]], str]:
  """A system's rule for the paths of its parameters, and `name` for the anchor's."""
  return functools.partial(_name_of, own, name)


def _name_of(own, name: str, path: tuple[str, ...]) -> str:
  return name if path[0] == ANCHOR else own(path)
