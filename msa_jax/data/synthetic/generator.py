"""The invented world behind the synthetic corpus: its options and its laws.

A latent sentiment `s` on a fine grid has a two-humped prior. Annotators read it with
noise and give whole ratings in -3..3; the label is their average. Each modality
expresses a latent `u` of its own:

  clear samples     u = s + noise[modality], but with probability conflict[modality]
                    an independent draw (a contradiction without any sign of it);
  unclear samples   an independent draw of `u`, and a tell that says so: a particle
                    at the start of the text, a shifted direction in frames.

Text is a bag of invented words with p(word | u) proportional to
exp(base + valence * u). Frames are Gaussian: u times the modality's sentiment
direction, plus or minus its tell direction, plus first-order autoregressive noise of
known covariance. Every law is a finite table or a Gaussian, so the posterior of the
label is exact (`data.synthetic.posterior`).
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from msa_jax import memory
from msa_jax.errors import UserError
from msa_jax.typing import MODALITIES, Task

SPLITS = ("train", "valid", "test")
CLS, SEP, UNK, PARTICLE = 0, 1, 2, 3
SPECIAL_TOKENS = ("[CLS]", "[SEP]", "[UNK]", "zhah")
# Labels of one modality, each the mean of ratings of what it alone expresses.
ALONE = {name: f"sentiment_{name}" for name in MODALITIES}
TASKS = ("sentiment", "emotion", *ALONE.values())
SENTIMENT = Task("regression", low=-3.0, high=3.0, protocol="mosi")
EMOTIONS = ("angry", "sad", "calm", "happy")
# Regions of the latent sentiment that the emotions name.
EMOTION_EDGES = (-1.25, 0.0, 1.25)
# Embeddings of words lie near a subspace of this many dimensions, so that what a
# word means can be learned from a thousand sentences.
WORD_RANK = 8
RATINGS = np.arange(-3, 4)
WORLDS = ("sentiment", "conflict", "echo")


@dataclasses.dataclass(frozen=True)
class SyntheticOptions:
  """What the synthetic corpus looks like. Triples are text, audio, vision.

  Attributes:
    world: `sentiment`, or one that shows a mechanism: `conflict`, `echo`
      (`data.synthetic.mechanisms`, which read `seed`, `sizes` and `videos` alone).
    seed: draws the world (words, directions) and the samples.
    tasks: labels to give, out of `sentiment`, `emotion`, and of what annotators say of
      one modality alone: `sentiment_text`, `sentiment_audio`, `sentiment_vision`.
    sizes: samples of train, valid and test.
    videos: that they come from.
    widths: feature widths.
    steps: sequence lengths after padding.
    text_length: median number of tokens, the first and last included.
    frames_per_token: mean number of audio and of vision frames per token.
    vocabulary: number of words.
    word_valence: spread of their valences.
    embedding_noise: standard deviation of a token around its word's embedding.
    signal: per-frame standard deviations that one unit of `u` moves audio, vision.
    tell: the same for the visible sign of clear and unclear samples.
    autocorrelation: of successive frames' noise (0 = white).
    noise: standard deviation of each modality's latent around the sentiment.
    conflict: probability that a clear sample expresses an independent draw.
    clear: probability that a sample is clear.
    lost: probability that a step lost its content (never the outer tokens).
    absent: probability that the modality is missing (one always remains).
    annotators: number of ratings averaged.
    annotator_noise: standard deviation of one rating.
  """

  world: str = "sentiment"
  seed: int = 0
  tasks: tuple[str, ...] = ("sentiment",)
  sizes: tuple[int, int, int] = (1284, 229, 686)
  videos: tuple[int, int, int] = (52, 10, 31)
  widths: tuple[int, int, int] = (768, 5, 20)
  steps: tuple[int, int, int] = (50, 375, 500)
  text_length: float = 12.0
  frames_per_token: tuple[float, float] = (4.5, 5.5)
  vocabulary: int = 80
  word_valence: float = 0.8
  embedding_noise: float = 0.1
  signal: tuple[float, float] = (0.8, 0.8)
  tell: tuple[float, float] = (1.2, 1.2)
  autocorrelation: tuple[float, float] = (0.5, 0.6)
  noise: tuple[float, float, float] = (0.3, 0.6, 0.6)
  conflict: tuple[float, float, float] = (0.01, 0.01, 0.01)
  clear: tuple[float, float, float] = (1.0, 0.85, 0.75)
  lost: tuple[float, float, float] = (0.03, 0.03, 0.03)
  absent: tuple[float, float, float] = (0.01, 0.03, 0.05)
  annotators: int = 5
  annotator_noise: float = 1.7

  def __post_init__(self):
    if self.world not in WORLDS:
      raise UserError(f"synthetic world {self.world}: choose from {', '.join(WORLDS)}")
    unknown = sorted(set(self.tasks) - set(TASKS))
    if unknown or not self.tasks:
      raise UserError(
        f"synthetic tasks {tuple(self.tasks)}: choose from {', '.join(TASKS)}"
      )
    for name in ("conflict", "clear", "lost", "absent"):
      _require(name, getattr(self, name), 0.0, 1.0)
    _require("autocorrelation", self.autocorrelation, 0.0, 0.99)
    for name in ("noise", "signal", "tell"):
      _require(name, getattr(self, name), 1e-3, 100.0)
    _require("widths", self.widths, 1, 2**20)
    _require("steps", self.steps, 1, 2**20)
    _require("text steps", self.steps[:1], 4, math.inf)
    _require("seed", (self.seed,), 0, 2**31 - 1)
    _require("text_length", (self.text_length,), 1.0, 1e4)
    _require("frames_per_token", self.frames_per_token, 1e-3, 1e3)
    _require("word_valence", (self.word_valence,), 0.0, 100.0)
    _require("embedding_noise", (self.embedding_noise,), 0.0, 100.0)
    _require("annotator_noise", (self.annotator_noise,), 1e-3, 100.0)
    _require("vocabulary", (self.vocabulary,), 2, 5000)
    _require("annotators", (self.annotators,), 1, 100)
    _require("sizes", self.sizes, 1, 2**31)
    for size, videos in zip(self.sizes, self.videos, strict=True):
      _require("videos", (videos,), 1, size)


def check_size(options: SyntheticOptions) -> None:
  """Raises UserError unless this machine has the memory for the samples."""
  pairs = zip(options.widths, options.steps, strict=True)
  size = 4 * sum(options.sizes) * sum(width * steps for width, steps in pairs)
  memory.check("the synthetic corpus of these sizes, steps and widths", size, size)


def _require(
  name: str, values: tuple[float | int, ...], low: float | int, high: float | int
):
  for value in values:
    if not low <= value <= high:
      raise UserError(f"synthetic {name} {value}: must be in [{low}, {high}]")


# For tests: every part of the world, in small.
TINY = SyntheticOptions(
  sizes=(24, 8, 12),
  videos=(4, 2, 3),
  widths=(6, 3, 4),
  steps=(8, 12, 14),
  text_length=6.0,
  frames_per_token=(1.5, 1.8),
  vocabulary=20,
)

# One modality tells nearly everything, the others little: what fusion weights and
# balancing methods are tried on.
ONE_STRONG = SyntheticOptions(
  noise=(0.2, 1.5, 1.5), word_valence=1.2, clear=(1.0, 0.6, 0.6)
)

# Text is strong and learned at once, audio and vision say less, and it takes longer to
# find in their wide frames: where a fast modality starves the slow ones.
ONE_FAST = SyntheticOptions(
  widths=(768, 40, 40),
  signal=(0.5, 0.5),
  noise=(0.5, 0.8, 0.8),
  clear=(1.0, 0.95, 0.95),
  word_valence=1.5,
  annotator_noise=1.0,
)

# Worlds that show what a mechanism of a system is good for.
CONFLICT = SyntheticOptions(world="conflict", sizes=(1200, 300, 600))
ECHO = SyntheticOptions(world="echo", sizes=(600, 300, 600))

PRESETS = {
  "mosi": SyntheticOptions(),
  "conflict": CONFLICT,
  "echo": ECHO,
  "tiny": TINY,
  "one_strong": ONE_STRONG,
  "one_fast": ONE_FAST,
}


def read_options(fields: Iterable[tuple[str, Any]]) -> SyntheticOptions:
  """Options from a config's items; `preset` names what the others change.

  Args:
    fields: (name, value) pairs, e.g. `config.data.synthetic.items()`.

  Raises:
    UserError: an unknown preset or option, or a value out of its range.
  """
  given = {
    name: tuple(value) if isinstance(value, list) else value for name, value in fields
  }
  preset = given.pop("preset", "mosi")
  if preset not in PRESETS:
    raise UserError(f"synthetic preset {preset}: choose from {', '.join(PRESETS)}")
  known = {field.name for field in dataclasses.fields(SyntheticOptions)}
  unknown = sorted(set(given) - known)
  if unknown:
    raise UserError(
      f"synthetic option {unknown[0]}: choose from preset, {', '.join(sorted(known))}"
    )
  return dataclasses.replace(PRESETS[preset], **given)


@dataclasses.dataclass(frozen=True)
class FrameLaw:
  """Law of one modality's frames: x[t] = offset + u * direction + tell * (+1 | -1)
  + noise[t], noise of covariance `covariance` and autocorrelation rho^|t - t'|."""

  offset: np.ndarray
  direction: np.ndarray
  tell: np.ndarray
  covariance: np.ndarray
  autocorrelation: float


@dataclasses.dataclass(frozen=True)
class World:
  """Every law of the world as tables.

  Attributes:
    sentiment: [S] grid of the latent; prior: [S] its probabilities.
    labels: [Y] label values; label_law: [S Y] p(label | sentiment).
    expression: [U] grid of the modalities' latents.
    expression_law: modality -> [S U] p(u | s) of clear samples, conflicts included.
    agreement_law: modality -> [S U] the same without conflicts.
    expression_prior: modality -> [U] an independent draw.
    tokens: [4 + V] special tokens, then words; word_law: [V U] log p(word | u).
    embedding: [4 + V d] of the tokens.
    frames: audio, vision -> `FrameLaw`.
  """

  sentiment: np.ndarray
  prior: np.ndarray
  labels: np.ndarray
  label_law: np.ndarray
  expression: np.ndarray
  expression_law: Mapping[str, np.ndarray]
  agreement_law: Mapping[str, np.ndarray]
  expression_prior: Mapping[str, np.ndarray]
  tokens: np.ndarray
  word_law: np.ndarray
  embedding: np.ndarray
  frames: Mapping[str, FrameLaw]


def _density(values, mean, deviation):
  return np.exp(-0.5 * ((values - mean) / deviation) ** 2) / deviation


def label_law(
  sentiment: Float[np.ndarray, "s"], annotators: int, noise: float
) -> Float[np.ndarray, "s y"]:
  """p(label | sentiment): the mean of independent whole ratings in -3..3.

  A rating is the nearest whole number to sentiment + noise, clipped to the range;
  the law of the sum is the rating's law convolved with itself.

  Returns:
    [s y] with y = 6 * annotators + 1 values from -3 to 3.
  """
  edges = (RATINGS[:-1] + 0.5)[None, :]
  below = np.vectorize(math.erf)((edges - sentiment[:, None]) / (noise * math.sqrt(2)))
  below = np.pad(0.5 * (1 + below), ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1)))
  rating = np.diff(below, axis=1)  # [s 7]
  total = rating
  for _ in range(annotators - 1):
    total = np.stack([np.convolve(a, b) for a, b in zip(total, rating, strict=True)])
  return total / total.sum(axis=1, keepdims=True)


def _invented_words(rng: np.random.Generator, count: int) -> list[str]:
  onsets = ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z"]
  vowels = ["a", "e", "i", "o", "u"]
  words: dict[str, None] = dict.fromkeys(SPECIAL_TOKENS)
  while len(words) < count + len(SPECIAL_TOKENS):
    syllables = rng.integers(2, 4)
    words[
      "".join(rng.choice(onsets) + rng.choice(vowels) for _ in range(syllables))
    ] = None
  return list(words)


def _word_tables(rng: np.random.Generator, options: SyntheticOptions, grid):
  """Tokens, [V U] log p(word | u), and embeddings [4 + V d].

  Half of the words carry sentiment. An embedding is random except for one direction
  along which it holds the word's valence, as pretrained encoders do.
  """
  count, width = options.vocabulary, options.widths[0]
  tokens = np.array(_invented_words(rng, count))
  valence = options.word_valence * rng.uniform(0.4, 1.6, count)
  valence *= rng.choice([-1.0, 0.0, 0.0, 1.0], count)
  frequency = -0.7 * np.log(1.0 + rng.permutation(count))
  score = frequency[:, None] + valence[:, None] * grid[None, :]
  top = score.max(axis=0, keepdims=True)
  law = score - top - np.log(np.exp(score - top).sum(axis=0, keepdims=True))
  rank = min(WORD_RANK, width)
  embedding = rng.standard_normal((len(tokens), rank)) / math.sqrt(rank)
  embedding = embedding @ rng.standard_normal((rank, width))
  direction = rng.choice([-1.0, 1.0], width)
  meaning = np.concatenate([np.zeros(len(SPECIAL_TOKENS)), valence])
  embedding += 2.0 * meaning[:, None] * direction[None, :]
  return tokens, law, (0.5 * embedding).astype(np.float32)


def _frame_law(rng, width, signal, tell, autocorrelation) -> FrameLaw:
  scale = np.exp(0.5 * rng.standard_normal(width))
  shared = 0.5 * rng.standard_normal((width, min(2, width)))
  covariance = shared @ shared.T + np.diag(rng.uniform(0.5, 1.0, width))
  covariance *= np.outer(scale, scale)
  directions = rng.standard_normal((2, width)) * scale
  # Signal and tell are measured in standard deviations of the noise (Mahalanobis).
  lengths = np.einsum("id,di->i", directions, np.linalg.solve(covariance, directions.T))
  directions *= (np.array([signal, tell]) / np.sqrt(lengths))[:, None]
  return FrameLaw(
    offset=0.5 * rng.standard_normal(width) * scale,
    direction=directions[0],
    tell=directions[1],
    covariance=covariance,
    autocorrelation=float(autocorrelation),
  )


@functools.lru_cache(maxsize=8)
def build_world(options: SyntheticOptions) -> World:
  """Returns the world of `options`; the same for the same options."""
  rng = np.random.default_rng([options.seed, 1])
  sentiment = np.linspace(-3.6, 3.6, 145)
  prior = 0.44 * _density(sentiment, -1.35, 0.85) + 0.56 * _density(
    sentiment, 1.35, 0.85
  )
  prior /= prior.sum()
  grid = np.linspace(-5.0, 5.0, 201)
  agreement, expression, marginal = {}, {}, {}
  for name, noise, conflict in zip(
    MODALITIES, options.noise, options.conflict, strict=True
  ):
    law = _density(grid[None, :], sentiment[:, None], noise)
    law /= law.sum(axis=1, keepdims=True)
    agreement[name] = law
    marginal[name] = prior @ law
    expression[name] = (1 - conflict) * law + conflict * marginal[name][None, :]
  tokens, word_law, embedding = _word_tables(rng, options, grid)
  frames = {
    name: _frame_law(rng, width, signal, tell, rho)
    for name, width, signal, tell, rho in zip(
      MODALITIES[1:],
      options.widths[1:],
      options.signal,
      options.tell,
      options.autocorrelation,
      strict=True,
    )
  }
  return World(
    sentiment=sentiment,
    prior=prior,
    labels=np.arange(-3 * options.annotators, 3 * options.annotators + 1)
    / options.annotators,
    label_law=label_law(sentiment, options.annotators, options.annotator_noise),
    expression=grid,
    expression_law=expression,
    agreement_law=agreement,
    expression_prior=marginal,
    tokens=tokens,
    word_law=word_law,
    embedding=embedding,
    frames=frames,
  )
