"""The exact posterior of the synthetic corpus's labels, and how well anyone can do.

Every law of the world is a finite table or a Gaussian, so Bayes' rule is a sum over
the grids of `generator`: no sampling, no approximation. The posterior conditions on
everything that was emitted: words, frames, tells, lengths, and what is missing
(missing at random, hence uninformative).
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from msa_jax.data.synthetic import generator as worlds
from msa_jax.data.synthetic.generator import (
  FrameLaw,
  SyntheticOptions,
  World,
  build_world,
)
from msa_jax.errors import UserError
from msa_jax.typing import MODALITIES, Sequences, Split

# Every non-empty set of modalities, the field's seven test conditions.
CONDITIONS = (
  ("text",),
  ("audio",),
  ("vision",),
  ("text", "audio"),
  ("text", "vision"),
  ("audio", "vision"),
  ("text", "audio", "vision"),
)


@dataclasses.dataclass(frozen=True)
class Posterior:
  """What can be known of each sample's label.

  Attributes:
    labels: [y] label values. probs: [n y] p(label | everything visible).
    median: [n] the prediction of least expected absolute error.
    mean: [n] that of least expected squared error.
    positive, negative: [n] p(label > 0), p(label < 0).
    emotion: [n 4] p(emotion | everything visible), in the order of `EMOTIONS`.
  """

  labels: np.ndarray
  probs: np.ndarray
  median: np.ndarray
  mean: np.ndarray
  positive: np.ndarray
  negative: np.ndarray
  emotion: np.ndarray


def emotion_of(sentiment: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
  """Index into `EMOTIONS` of each latent sentiment; edges belong to the upper one."""
  # The grid's points are sums of binary fractions: without the tiny shift rounding
  # would decide on which side a point at an edge falls.
  edges = np.asarray(worlds.EMOTION_EDGES) - 1e-9
  return np.searchsorted(edges, sentiment, side="right").astype(np.int32)


def frame_statistics(
  law: FrameLaw, features: Float[np.ndarray, "n t d"], seen: Bool[np.ndarray, "n t"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"]]:
  """Sufficient statistics of frames for (u, tell).

  With D = [direction, tell], C the covariance of a frame and R the correlation
  matrix of the frames that were seen (rho^gap), returns

    D C^-1 (X - offset)^T R^-1 1  [n 2]   and   1^T R^-1 1  [n].

  A first-order autoregression seen at irregular times is a Markov chain, so R^-1 is
  applied through the innovations between successive seen frames.
  """
  directions = np.linalg.solve(
    law.covariance, np.stack([law.direction, law.tell], axis=1)
  )
  projected = (features.astype(np.float64) - law.offset) @ directions  # [n t 2]
  n, t = seen.shape
  time = np.where(seen, np.arange(t)[None, :], -1)
  before = np.full((n, t), -1)
  before[:, 1:] = np.maximum.accumulate(time, axis=1)[:, :-1]  # last seen frame
  first = before < 0
  decay = np.where(first, 0.0, law.autocorrelation ** (np.arange(t)[None, :] - before))
  variance = 1.0 - decay**2
  previous = np.take_along_axis(projected, np.maximum(before, 0)[..., None], axis=1)
  innovation = projected - decay[..., None] * previous
  weight = np.where(seen, (1.0 - decay) / variance, 0.0)
  return (
    np.einsum("nt,ntd->nd", weight, np.where(seen[..., None], innovation, 0.0)),
    (weight * (1.0 - decay)).sum(axis=1),
  )


def _frame_likelihood(law: FrameLaw, sequences: Sequences, grid) -> np.ndarray:
  """log p(frames | u, tell) up to a constant: [n 2 u], clear samples first."""
  n, t, _ = sequences.features.shape
  seen = np.arange(t)[None, :] < sequences.lengths[:, None]
  if sequences.lost is not None:
    seen &= ~sequences.lost
  linear, count = [], []
  for start in range(0, n, 256):  # bounds the float64 copies
    rows = slice(start, start + 256)
    part = frame_statistics(law, sequences.features[rows], seen[rows])
    linear.append(part[0])
    count.append(part[1])
  linear, count = np.concatenate(linear), np.concatenate(count)
  basis = np.stack([law.direction, law.tell], axis=1)
  gram = basis.T @ np.linalg.solve(law.covariance, basis)  # [2 2]
  levels = []
  for sign in (1.0, -1.0):
    point = np.stack([grid, np.full_like(grid, sign)])  # [2 u]
    energy = np.einsum("iu,ij,ju->u", point, gram, point)
    levels.append(linear @ point - 0.5 * count[:, None] * energy[None, :])
  return np.stack(levels, axis=1)


def _word_likelihood(world: World, words, sequences: Sequences) -> np.ndarray:
  """log p(words, particle | u, clear): [n 2 u], clear samples first."""
  n, t = words.shape
  seen = np.arange(t)[None, :] < sequences.lengths[:, None]
  if sequences.lost is not None:
    seen &= ~sequences.lost
  first = len(worlds.SPECIAL_TOKENS)
  row, column = np.nonzero(seen & (words >= first))
  size = len(world.word_law)
  flat = row * size + words[row, column] - first
  counts = np.bincount(flat, minlength=n * size).reshape(n, size)
  level = np.stack([counts @ world.word_law] * 2, axis=1)  # [n 2 u]
  # The particle stands second in every unclear text and nowhere else.
  informative = seen[:, 1]
  particle = words[:, 1] == worlds.PARTICLE
  level[informative & particle, 0] = -np.inf
  level[informative & ~particle, 1] = -np.inf
  return level


def log_likelihoods(
  options: SyntheticOptions, split: Split
) -> Mapping[str, Float[np.ndarray, "n s"]]:
  """log p(what the modality emitted | sentiment), up to a constant per sample.

  Returns:
    modality -> [n s] over `World.sentiment`; zero rows where the modality is absent.
  """
  world = build_world(options)
  result = {}
  for name, clear in zip(MODALITIES, options.clear, strict=True):
    sequences = split.modalities[name]
    if name == "text":
      level = _word_likelihood(world, split.extras["words"], sequences)
    else:
      level = _frame_likelihood(world.frames[name], sequences, world.expression)
    level = level + np.log(np.maximum([clear, 1.0 - clear], 1e-300))[None, :, None]
    weight = np.exp(level - level.max(axis=(1, 2), keepdims=True))
    value = weight[:, 0] @ world.expression_law[name].T
    value += (weight[:, 1] @ world.expression_prior[name])[:, None]
    value = np.log(np.maximum(value, 1e-300))
    result[name] = np.where(sequences.lengths[:, None] > 0, value, 0.0)
  return result


def posterior_from(
  options: SyntheticOptions,
  likelihoods: Mapping[str, Float[np.ndarray, "n s"]],
  visible: Iterable[str] = MODALITIES,
) -> Posterior:
  """Posterior of the label from `log_likelihoods`, with only `visible` modalities.

  Raises:
    UserError: `visible` names something that is not a modality.
  """
  visible = tuple(visible)
  unknown = sorted(set(visible) - set(likelihoods))
  if unknown:
    raise UserError(f"visible modality {unknown[0]}: choose from {sorted(likelihoods)}")
  world = build_world(options)
  size = len(next(iter(likelihoods.values())))
  level = np.repeat(np.log(world.prior)[None, :], size, axis=0)
  for name in visible:
    level = level + likelihoods[name]
  latent = np.exp(level - level.max(axis=1, keepdims=True))
  latent /= latent.sum(axis=1, keepdims=True)
  probs = latent @ world.label_law
  labels = world.labels
  middle = (np.cumsum(probs, axis=1) >= 0.5).argmax(axis=1)
  regions = emotion_of(world.sentiment)
  return Posterior(
    labels=labels,
    probs=probs,
    median=labels[middle],
    mean=probs @ labels,
    positive=probs[:, labels > 0].sum(axis=1),
    negative=probs[:, labels < 0].sum(axis=1),
    emotion=latent @ np.eye(len(worlds.EMOTIONS))[regions],
  )


def bayes(
  options: SyntheticOptions, split: Split, visible: Iterable[str] = MODALITIES
) -> Posterior:
  """Exact posterior of every sample's label given its visible modalities.

  Args:
    options: those the split was drawn with.
    split: a split of the synthetic corpus, not preprocessed; further steps may have
      been marked lost and further lengths set to zero.
    visible: modalities the observer may use.

  Returns:
    `Posterior` of the split's samples.

  Raises:
    UserError: `visible` names something that is not a modality.
  """
  return posterior_from(options, log_likelihoods(options, split), visible)


def optimum(posterior: Posterior, split: Split) -> dict[str, float]:
  """Figures of the Bayes-optimal predictor on the split's own labels.

  Returns:
    `mae`, `acc2_non0`, `acc2_has0` as realised on this split (each by the rule that
    is best for it), `mae_expected`: what the optimal predictor expects of itself on
    samples like these, free of the labels' luck; with emotion labels also
    `emotion_accuracy`.
  """
  figures = {}
  if "sentiment" in split.labels:
    label = split.labels["sentiment"]
    error = np.abs(posterior.median[:, None] - posterior.labels[None, :])
    polar = label != 0
    figures = {
      "mae": np.abs(posterior.median - label).mean(),
      "mae_expected": (posterior.probs * error).sum(axis=1).mean(),
      "acc2_non0": np.mean(
        (posterior.positive > posterior.negative)[polar] == (label > 0)[polar]
      )
      if polar.any()
      else 0.0,
      "acc2_has0": np.mean((posterior.negative < 0.5) == (label >= 0)),
    }
  if "emotion" in split.labels:
    hits = posterior.emotion.argmax(axis=1) == split.labels["emotion"]
    figures["emotion_accuracy"] = hits.mean()
  return {name: float(value) for name, value in figures.items()}


def optimum_under(
  options: SyntheticOptions,
  split: Split,
  available: Bool[np.ndarray, "n m"],
  likelihoods: Mapping[str, Float[np.ndarray, "n s"]] | None = None,
) -> dict[str, float]:
  """`optimum` where each sample has modalities of its own.

  Args:
    options: those the split was drawn with.
    split: not preprocessed; steps may have been marked lost.
    available: columns in the order of `MODALITIES`, True = visible.
    likelihoods: of `log_likelihoods`; None = they are computed.
  """
  if likelihoods is None:
    likelihoods = log_likelihoods(options, split)
  seen = {
    name: np.where(available[:, [column]], likelihoods[name], 0.0)
    for column, name in enumerate(MODALITIES)
  }
  return optimum(posterior_from(options, seen), split)


def optimum_by_condition(
  options: SyntheticOptions, split: Split
) -> dict[str, dict[str, float]]:
  """`optimum` under each of the seven conditions, keyed `text`, `text+audio`, ..."""
  likelihoods = log_likelihoods(options, split)
  return {
    "+".join(visible): optimum(posterior_from(options, likelihoods, visible), split)
    for visible in CONDITIONS
  }
