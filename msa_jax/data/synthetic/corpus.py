"""The synthetic corpus: the size and shape of CMU-MOSI, from an invented world.

It needs no files, is the same for the same options, and its Bayes-optimal error is
known exactly, so every run can say how far from optimal it is. The laws are in
`data.synthetic.generator`, the posterior in `data.synthetic.posterior`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import ml_collections
import numpy as np

from msa_jax.data.synthetic import generator as worlds
from msa_jax.data.synthetic.generator import (
  SPLITS,
  FrameLaw,
  SyntheticOptions,
  World,
  build_world,
  check_size,
  read_options,
)
from msa_jax.data.synthetic.mechanisms import MECHANISMS
from msa_jax.data.synthetic.posterior import (
  CONDITIONS,
  emotion_of,
  log_likelihoods,
  optimum,
  posterior_from,
)
from msa_jax.names import TEXT_STEPS, TEXT_WORDS
from msa_jax.typing import MODALITIES, Corpus, Sequences, Split, Task

_PART = 4096  # samples of a large training split drawn at once


def _choose(rng: np.random.Generator, table: np.ndarray) -> np.ndarray:
  """One column per row of a table of probabilities [n k]."""
  edges = np.cumsum(table, axis=1)
  edges /= edges[:, -1:]
  return (rng.random((len(table), 1)) >= edges).sum(axis=1)


def _latents(rng: np.random.Generator, options: SyntheticOptions, size: int):
  """Sentiments, labels, and of each modality: latent, clarity, conflict."""
  world = build_world(options)
  row = rng.choice(len(world.prior), size=size, p=world.prior)
  latents = {
    "sentiment": world.sentiment[row],
    "label": world.labels[_choose(rng, world.label_law[row])],
  }
  for column, name in enumerate(MODALITIES):
    clear = rng.random(size) < options.clear[column]
    conflict = rng.random(size) < options.conflict[column]
    independent = (~clear | conflict)[:, None]
    law = np.where(
      independent, world.expression_prior[name][None, :], world.agreement_law[name][row]
    )
    latents[name] = _choose(rng, law)  # index into world.expression
    latents[f"{name}_clear"] = clear
    latents[f"{name}_conflict"] = clear & conflict
  return latents


def _lengths(rng: np.random.Generator, options: SyntheticOptions, size: int):
  """Real lengths [n] by modality: longer texts have more frames; 0 = absent."""
  tokens = options.text_length * np.exp(0.5 * rng.standard_normal(size))
  tokens = np.clip(np.rint(tokens), 4, options.steps[0])
  lengths = {"text": tokens}
  for name, rate, steps in zip(
    MODALITIES[1:], options.frames_per_token, options.steps[1:], strict=True
  ):
    frames = rate * tokens * np.exp(0.25 * rng.standard_normal(size))
    lengths[name] = np.clip(np.rint(frames), 1, steps)
  absent = rng.random((size, len(MODALITIES))) < np.asarray(options.absent)
  absent[absent.all(axis=1), 0] = False
  return {
    name: np.where(absent[:, column], 0, lengths[name]).astype(np.int32)
    for column, name in enumerate(MODALITIES)
  }


def _lost(rng: np.random.Generator, lengths: np.ndarray, steps: int, rate: float):
  real = np.arange(steps)[None, :] < lengths[:, None]
  return real & (rng.random((len(lengths), steps)) < rate)


def _words(rng, options: SyntheticOptions, expression, clear, lengths):
  """Token indices [n t] and lost steps [n t]; lost tokens are [UNK]."""
  world = build_world(options)
  size, steps = len(lengths), options.steps[0]
  position = np.arange(steps)[None, :]
  real = position < lengths[:, None]
  inner = real & (position > 0) & (position < lengths[:, None] - 1)
  edges = np.cumsum(np.exp(world.word_law), axis=0).T  # [u v]
  edges /= edges[:, -1:]
  words = np.zeros((size, steps), np.int32)
  row, column = np.nonzero(inner)
  # One draw per token: shifted by the row, all tables make one sorted list.
  draw = np.searchsorted(
    (edges + np.arange(len(edges))[:, None]).ravel(),
    rng.random(len(row)) + expression[row],
    side="right",
  )
  draw = np.clip(draw - expression[row] * edges.shape[1], 0, edges.shape[1] - 1)
  words[row, column] = draw + len(worlds.SPECIAL_TOKENS)
  words[:, 1] = np.where(clear | (lengths == 0), words[:, 1], worlds.PARTICLE)
  last = np.flatnonzero(lengths)
  words[last, lengths[last] - 1] = worlds.SEP
  lost = _lost(rng, lengths, steps, options.lost[0]) & inner
  return np.where(lost, worlds.UNK, words).astype(np.int32), lost


def _token_features(rng, options: SyntheticOptions, world: World, words, seen):
  """Embeddings of the words with a little noise [n t d] float16."""
  features = np.zeros((*words.shape, options.widths[0]), np.float16)
  for start in range(0, len(words), 256):  # bounds the float32 copies
    rows = slice(start, start + 256)
    row, column = np.nonzero(seen[rows])
    vectors = world.embedding[words[rows][row, column]]
    noise = rng.standard_normal(vectors.shape, dtype=np.float32)
    features[rows][row, column] = vectors + options.embedding_noise * noise
  return features


def _frames(rng, law: FrameLaw, expression, clear, lengths, steps: int):
  """Frames [n t d] float32 with autoregressive noise, zero after the length."""
  size, width = len(lengths), len(law.offset)
  longest = max(int(lengths.max(initial=0)), 1)
  noise = rng.standard_normal((longest, size, width), dtype=np.float32)
  rho = law.autocorrelation
  for step in range(1, longest):
    noise[step] *= math.sqrt(1.0 - rho**2)
    noise[step] += rho * noise[step - 1]
  noise = noise @ np.linalg.cholesky(law.covariance).T.astype(np.float32)
  mean = law.offset + expression[:, None] * law.direction
  mean = mean + np.where(clear, 1.0, -1.0)[:, None] * law.tell
  noise += mean.astype(np.float32)[None]
  features = np.zeros((size, steps, width), np.float32)
  features[:, :longest] = noise.transpose(1, 0, 2)
  features[np.arange(steps)[None, :] >= lengths[:, None]] = 0.0
  return features


def _ratings(rng, options: SyntheticOptions, expression, lengths):
  """Mean ratings of what a modality expresses [n]; NaN where it is absent."""
  noise = options.annotator_noise * rng.standard_normal(
    (len(expression), options.annotators)
  )
  ratings = np.clip(np.rint(expression[:, None] + noise), -3, 3)
  return np.where(lengths > 0, ratings.mean(axis=1), np.nan).astype(np.float32)


def _labels(rng, options: SyntheticOptions, latents, lengths):
  """Labels of the tasks asked for, by task."""
  labels = {}
  if "sentiment" in options.tasks:
    labels["sentiment"] = latents["label"].astype(np.float32)
  if "emotion" in options.tasks:
    labels["emotion"] = emotion_of(latents["sentiment"])
  for name, task in worlds.ALONE.items():
    if task in options.tasks:
      expression = build_world(options).expression[latents[name]]
      labels[task] = _ratings(rng, options, expression, lengths[name])
  return labels


def _names(rng: np.random.Generator, size: int, videos: int, first: int):
  """Ids `video$_$clip` and groups of samples spread unevenly over the videos."""
  extra = rng.multinomial(size - videos, rng.dirichlet(np.full(videos, 4.0)))
  names = np.array([f"video{first + number:03d}" for number in range(videos)])
  groups = np.repeat(names, extra + 1)
  clips = np.concatenate([np.arange(1, count + 2) for count in extra])
  ids = [f"{group}$_${clip}" for group, clip in zip(groups, clips, strict=True)]
  return np.array(ids), groups


def draw(
  options: SyntheticOptions,
  rng: np.random.Generator,
  size: int,
  *,
  text_features: bool = True,
  videos: int = 1,
  first_video: int = 0,
) -> Split:
  """Draws `size` independent samples of the world of `options`.

  Args:
    options: the world.
    rng: source of the draw.
    size: number of samples.
    text_features: False leaves the text features at width 1 (the posterior reads the
      words), which makes large draws cheap.
    videos, first_video: number of videos, and the number of the first one.

  Returns:
    A split; `extras` holds the latent variables (`latent_sentiment`,
    `latent_<modality>`, `clear_<modality>`, `conflict_<modality>`), the token
    indices `words` [n t], and `text_words` [n t], the same but -1 at [CLS] and [SEP].
  """
  world = build_world(options)
  latents = _latents(rng, options, size)
  lengths = _lengths(rng, options, size)
  ids, groups = _names(rng, size, videos, first_video)
  words, lost = _words(
    rng, options, latents["text"], latents["text_clear"], lengths["text"]
  )
  seen = (np.arange(options.steps[0])[None, :] < lengths["text"][:, None]) & ~lost
  features = (
    _token_features(rng, options, world, words, seen)
    if text_features
    else np.zeros((*words.shape, 1), np.float16)
  )
  modalities = {"text": Sequences(features, lengths["text"], lost)}
  for column, name in enumerate(MODALITIES[1:], start=1):
    features = _frames(
      rng,
      world.frames[name],
      world.expression[latents[name]],
      latents[f"{name}_clear"],
      lengths[name],
      options.steps[column],
    )
    lost = _lost(rng, lengths[name], options.steps[column], options.lost[column])
    features[lost] = 0.0
    modalities[name] = Sequences(features, lengths[name], lost)
  labels = _labels(rng, options, latents, lengths)
  # Before the first and after the last word stand [CLS] and [SEP].
  outer = (words == worlds.CLS) | (words == worlds.SEP)
  extras = {"words": words, TEXT_WORDS: np.where(outer, -1, words).astype(np.int32)}
  extras["latent_sentiment"] = latents["sentiment"]
  for name in MODALITIES:
    extras[f"latent_{name}"] = world.expression[latents[name]]
    extras[f"clear_{name}"] = latents[f"{name}_clear"]
    extras[f"conflict_{name}"] = latents[f"{name}_conflict"]
  inner = np.maximum(lengths["text"] - 1, 1)
  text = [
    " ".join(world.tokens[row[1:end]]) for row, end in zip(words, inner, strict=True)
  ]
  return Split(ids, modalities, labels, np.array(text), groups, extras)


def training_parts(options: SyntheticOptions, size: int) -> list[Callable[[], Split]]:
  """A training split of any size in parts, each drawn from a stream of its own.

  Args:
    options: the world; `sizes[0]` and `videos[0]` do not count.
    size: number of samples.

  Returns:
    Functions that each draw at most 4,096 samples, without posteriors.
  """
  per_video, first = 40, sum(options.videos)

  def part(number: int, count: int) -> Split:
    return draw(
      options,
      np.random.default_rng([options.seed, 2, 0, number]),
      count,
      videos=-(-count // per_video),
      first_video=first + number * -(-_PART // per_video),
    )

  return [
    functools.partial(part, number, min(_PART, size - start))
    for number, start in enumerate(range(0, size, _PART))
  ]


def _with_optimum(options: SyntheticOptions, split: Split):
  """The split with its posterior, and the least error in each condition."""
  likelihoods = log_likelihoods(options, split)
  posteriors = {
    visible: posterior_from(options, likelihoods, visible) for visible in CONDITIONS
  }
  conditions = {
    "+".join(visible): optimum(posterior, split)
    for visible, posterior in posteriors.items()
  }
  full = posteriors[MODALITIES]
  bayes = {
    "bayes_median": full.median,
    "bayes_mean": full.mean,
    "bayes_positive": full.positive,
  }
  return dataclasses.replace(split, extras={**split.extras, **bayes}), conditions


def synthetic(
  options: SyntheticOptions | ml_collections.ConfigDict | None = None,
) -> Corpus:
  """Draws the synthetic corpus.

  Args:
    options: `SyntheticOptions`, or a config with some of its fields and `preset`
      (`mosi`, `tiny`, `one_strong`, `one_fast`, `conflict`, `echo`); None = the
      default, MOSI's splits and shapes.

  Returns:
    A corpus with splits train, valid and test; for worlds other than `sentiment` see
    `data.synthetic.mechanisms`. `extras` of each split hold the
    latent variables and the exact posterior (`bayes_median`, `bayes_mean`,
    `bayes_positive`); `notes["bayes"][split]` holds `mae`, `acc2_non0`, `acc2_has0`
    of the Bayes-optimal predictor on that very split, and
    `notes["bayes_by_condition"][split]["text+audio"]` the same with only some
    modalities visible.

  Raises:
    UserError: an unknown option, a value out of its range, or more samples than this
      machine has memory for.
  """
  if not isinstance(options, SyntheticOptions):
    options = read_options(() if options is None else options.items())
  if options.world in MECHANISMS:
    return MECHANISMS[options.world](options)
  check_size(options)
  splits, best, conditions = {}, {}, {}
  for number, name in enumerate(SPLITS):
    split = draw(
      options,
      np.random.default_rng([options.seed, 2, number]),
      options.sizes[number],
      videos=options.videos[number],
      first_video=sum(options.videos[:number]),
    )
    splits[name], conditions[name] = _with_optimum(options, split)
    best[name] = conditions[name]["+".join(MODALITIES)]
  tasks = {
    **dict.fromkeys(("sentiment", *worlds.ALONE.values()), worlds.SENTIMENT),
    "emotion": Task("classes", classes=worlds.EMOTIONS, protocol="classes"),
  }
  return Corpus(
    name="synthetic",
    splits=splits,
    tasks={name: tasks[name] for name in options.tasks},
    notes={
      "seed": options.seed,
      TEXT_STEPS: "words",
      "bayes": best,
      "bayes_by_condition": conditions,
    },
  )
