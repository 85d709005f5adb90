"""Small worlds in which one mechanism of a system is worth something, and can be seen.

`conflict`: two tasks that need different things of one text, for MMoLRE. A step is

  x_t = sum_k a_k s_kt d_k + noise,

with strengths a_1..a_4 of the sample, random signs s_kt and orthogonal directions d_k.
The mean over steps says nothing; a hidden unit along d_k says a_k. Sentiment is
1.5 (a_1 - a_2), the emotion which of a_3 and a_4 exceed their median: each task needs
two units of its own, and two that are shared serve one of them only.

`echo`: an absent modality that another one tells of, for MoMKE. Audio says a value v
by p, q and r with v = p q r (p, q = +-1): no linear model hears it, and an expert
needs many samples to learn it. Text says another value u plainly, and repeats what
audio says: truly in a share of the samples, at random in the others; a tell says which.
The label is 1.5 (u + v). Without audio, text's own expert has fewer samples to learn
the product from than audio's, and the router can tell when to ask that one.
"""

from collections.abc import Callable, Mapping

import numpy as np

from msa_jax.data.synthetic.generator import SENTIMENT, SPLITS, SyntheticOptions
from msa_jax.typing import Corpus, Sequences, Split, Task

STEPS, WIDTH = 16, 16
QUADRANTS = ("neither", "first", "second", "both")
ECHO_SHARE = 0.4
_QUIET = 0.2  # deviation of the noise along what is meant to be heard
_LABEL_NOISE = 0.1


def _stream(options: SyntheticOptions, number: int):
  """Random numbers and size of a split, train being 0."""
  return np.random.default_rng([options.seed, 4, number]), options.sizes[number]


def _directions(options: SyntheticOptions, count: int) -> np.ndarray:
  """Orthonormal directions [count WIDTH] of a world."""
  rng = np.random.default_rng([options.seed, 3])
  return np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0][:count]


def _noise(rng, shape, directions) -> np.ndarray:
  """Noise of deviation 1, but `_QUIET` along the directions."""
  noise = rng.standard_normal((*shape, WIDTH))
  along = noise @ directions.T
  return noise - (1 - _QUIET) * along @ directions


def _text(features: np.ndarray) -> Sequences:
  lengths = np.full(len(features), features.shape[1], np.int32)
  return Sequences(features.astype(np.float32), lengths)


def _conflict(options: SyntheticOptions, number: int):
  rng, size = _stream(options, number)
  directions = _directions(options, 4)
  strengths = rng.uniform(0.0, 2.0, (size, 4))
  signs = rng.choice([-1.0, 1.0], (size, STEPS, 4))
  features = (strengths[:, None] * signs) @ directions
  features += _noise(rng, (size, STEPS), directions)
  sentiment = 1.5 * (strengths[:, 0] - strengths[:, 1])
  sentiment += _LABEL_NOISE * rng.standard_normal(size)
  high = strengths[:, 2:] > 1.0
  labels = {
    "sentiment": np.clip(sentiment, -3, 3).astype(np.float32),
    "emotion": (high[:, 0] + 2 * high[:, 1]).astype(np.int32),
  }
  return {"text": _text(features)}, labels, {"strengths": strengths}


def _echo(options: SyntheticOptions, number: int):
  rng, size = _stream(options, number)
  directions = _directions(options, 5)
  said = rng.uniform(-1.0, 1.0, size)
  heard = _factors(rng, size)
  repeated = rng.random(size) < ECHO_SHARE
  echoed = np.where(repeated[:, None], heard, _factors(rng, size))
  tell = np.where(repeated, 1.0, -1.0)
  text = np.concatenate([said[:, None], echoed, tell[:, None]], axis=1) @ directions
  audio = heard @ directions[1:4]
  modalities = {}
  for name, values in (("text", text), ("audio", audio)):
    noise = _noise(rng, (size, STEPS), directions)
    modalities[name] = _text(values[:, None] + noise)
  label = 1.5 * (said + heard.prod(axis=1))
  label += _LABEL_NOISE * rng.standard_normal(size)
  labels = {"sentiment": np.clip(label, -3, 3).astype(np.float32)}
  extras = {"said": said, "heard": heard.prod(axis=1), "repeated": repeated}
  return modalities, labels, extras


def _factors(rng, size: int) -> np.ndarray:
  """p, q = +-1 and r in [0, 1]: [n 3]."""
  signs = rng.choice([-1.0, 1.0], (size, 2))
  return np.concatenate([signs, rng.uniform(0.0, 1.0, (size, 1))], axis=1)


def _corpus(world: str, draw: Callable, tasks: Mapping[str, Task]):
  def made(options: SyntheticOptions) -> Corpus:
    splits, first = {}, 0
    parts = zip(SPLITS, options.sizes, options.videos, strict=True)
    for number, (name, size, videos) in enumerate(parts):
      modalities, labels, extras = draw(options, number)
      groups = np.sort(first + np.arange(size) % videos)
      ids = [f"video{group:03d}$_${row}" for row, group in enumerate(groups)]
      kept = {"groups": np.array([f"video{g:03d}" for g in groups]), "extras": extras}
      splits[name] = Split(np.array(ids), modalities, labels, **kept)
      first += videos
    return Corpus(world, splits, dict(tasks), {"seed": options.seed})

  return made


_QUADRANT = Task("classes", classes=QUADRANTS, protocol="classes")
# World -> its corpus.
MECHANISMS: Mapping[str, Callable[[SyntheticOptions], Corpus]] = {
  "conflict": _corpus(
    "conflict", _conflict, {"sentiment": SENTIMENT, "emotion": _QUADRANT}
  ),
  "echo": _corpus("echo", _echo, {"sentiment": SENTIMENT}),
}
