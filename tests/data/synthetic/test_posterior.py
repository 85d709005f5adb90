"""The exact posterior against dense algebra, explicit loops and plain simulation."""

import dataclasses
import math

import numpy as np
import pytest

from msa_jax.data import synthetic
from msa_jax.data.synthetic import generator
from msa_jax.data.synthetic import posterior as bayes
from msa_jax.errors import UserError
from msa_jax.typing import Sequences

# Every part of the world at work: unclear texts, conflicts, lost steps, absences.
OPTIONS = dataclasses.replace(
  generator.TINY,
  widths=(5, 2, 3),
  steps=(7, 6, 8),
  noise=(0.5, 0.8, 0.9),
  conflict=(0.1, 0.15, 0.1),
  clear=(0.8, 0.7, 0.6),
  lost=(0.2, 0.2, 0.2),
  absent=(0.1, 0.1, 0.1),
  signal=(0.5, 0.4),
  tell=(0.4, 0.5),
)


@pytest.fixture(scope="module")
def sample():
  return synthetic.draw(OPTIONS, np.random.default_rng(11), 40)


@pytest.fixture(scope="module")
def large():
  return synthetic.draw(OPTIONS, np.random.default_rng(5), 6000, text_features=False)


def seen_steps(sequences, row):
  steps = np.arange(sequences.features.shape[1]) < sequences.lengths[row]
  return np.flatnonzero(steps & ~sequences.lost[row])


def dense_frames(law, features, seen):
  """Dense precision of the seen frames, flattened, and the mean's three parts."""
  gaps = np.abs(seen[:, None] - seen[None, :])
  precision = np.linalg.inv(np.kron(law.autocorrelation**gaps, law.covariance))
  parts = [np.tile(part, len(seen)) for part in (law.offset, law.direction, law.tell)]
  return precision, parts, features[seen].astype(np.float64).ravel()


def dense_log_density(law, features, seen, u, sign):
  """log N(frames; mean(u, sign), R x C) without its constant."""
  precision, (offset, direction, tell), x = dense_frames(law, features, seen)
  residual = x - offset - u * direction - sign * tell
  return -0.5 * residual @ precision @ residual


def test_frame_likelihood_equals_the_dense_gaussian_with_gaps(sample):
  for name in ("audio", "vision"):
    law = generator.build_world(OPTIONS).frames[name]
    sequences = sample.modalities[name]
    grid = np.array([-2.0, 0.0, 1.5])
    levels = bayes._frame_likelihood(law, sequences, grid)
    checked = 0
    for row in range(len(sample)):
      seen = seen_steps(sequences, row)
      if not len(seen):
        continue
      expected = np.array(
        [
          [dense_log_density(law, sequences.features[row], seen, u, sign) for u in grid]
          for sign in (1.0, -1.0)
        ]
      )
      np.testing.assert_allclose(
        levels[row] - levels[row, 0, 0], expected - expected[0, 0], atol=1e-8
      )
      checked += np.any(np.diff(seen) > 1)
    assert checked > 5  # gaps did occur


def test_text_likelihood_equals_a_loop_over_tokens_and_latents(sample):
  laws = generator.build_world(OPTIONS)
  value = bayes.log_likelihoods(OPTIONS, sample)["text"]
  text, words = sample.modalities["text"], sample.extras["words"]
  kinds = set()
  for row in range(len(sample)):
    if text.lengths[row] == 0:
      assert np.all(value[row] == 0)
      continue
    seen = [i for i in seen_steps(text, row) if 0 < i < text.lengths[row] - 1]
    shares = []
    for clear in (True, False):
      # The second token of an unclear text is the particle, of a clear one never.
      if 1 in seen and (words[row, 1] == generator.PARTICLE) == clear:
        shares.append(np.zeros(len(laws.sentiment)))
        continue
      kinds.add((1 in seen, clear))
      law = (
        laws.expression_law["text"] if clear else laws.expression_prior["text"][None]
      )
      total = np.zeros(len(laws.sentiment))
      for u in range(len(laws.expression)):
        likelihood = 1.0
        for step in seen:
          if words[row, step] != generator.PARTICLE:
            likelihood *= math.exp(laws.word_law[words[row, step] - 4, u])
        total = total + law[:, u] * likelihood
      shares.append((OPTIONS.clear[0] if clear else 1 - OPTIONS.clear[0]) * total)
    expected = np.log(shares[0] + shares[1])
    np.testing.assert_allclose(
      value[row] - value[row, 0], expected - expected[0], atol=1e-9
    )
  assert kinds == {(True, True), (True, False), (False, True), (False, False)}


def simulate(rng, count):
  """Sentiments, labels and modality latents by the story, without any table."""
  hump = rng.random(count) < 0.44
  sentiment = np.where(hump, -1.35, 1.35) + 0.85 * rng.standard_normal(count)
  sentiment = sentiment[np.abs(sentiment) <= 3.6]
  count = len(sentiment)
  noise = OPTIONS.annotator_noise * rng.standard_normal((OPTIONS.annotators, count))
  ratings = np.clip(np.floor(sentiment + noise + 0.5), -3, 3)
  latents = {}
  for name, deviation, conflict, clear in zip(
    ("text", "audio", "vision"),
    OPTIONS.noise,
    OPTIONS.conflict,
    OPTIONS.clear,
    strict=True,
  ):
    is_clear = rng.random(count) < clear
    other = ~is_clear | (rng.random(count) < conflict)
    source = np.where(other, rng.permutation(sentiment), sentiment)
    latents[name] = (source + deviation * rng.standard_normal(count), is_clear)
  return sentiment, ratings.mean(axis=0), latents


def log_weights(split, row, latents):
  """log p(everything sample `row` emitted | the simulated latents)."""
  laws = generator.build_world(OPTIONS)
  total = 0.0
  text, words = split.modalities["text"], split.extras["words"]
  if text.lengths[row]:
    u, clear = latents["text"]
    grid = np.clip(np.rint((u + 5.0) / 0.05).astype(int), 0, 200)
    inner = [i for i in seen_steps(text, row) if 0 < i < text.lengths[row] - 1]
    for step in inner:
      if words[row, step] != generator.PARTICLE:
        total = total + laws.word_law[words[row, step] - 4][grid]
    if 1 in inner:
      unclear = words[row, 1] == generator.PARTICLE
      total = total + np.where(clear == unclear, -np.inf, 0.0)
  for name in ("audio", "vision"):
    sequences = split.modalities[name]
    seen = seen_steps(sequences, row)
    if sequences.lengths[row] and len(seen):
      u, clear = latents[name]
      sign = np.where(clear, 1.0, -1.0)
      precision, (offset, direction, tell), x = dense_frames(
        laws.frames[name], sequences.features[row], seen
      )
      basis = np.stack([x - offset, -direction, -tell])
      gram = basis @ precision @ basis.T
      point = np.stack([np.ones_like(u), u, sign])
      total = total - 0.5 * np.einsum("in,ij,jn->n", point, gram, point)
  return total + np.zeros(len(latents["text"][0]))


def test_posterior_agrees_with_importance_sampling_of_the_story(sample):
  sentiment, label, latents = simulate(np.random.default_rng(3), 200_000)
  exact = bayes.bayes(OPTIONS, sample)
  for row in range(12):
    level = log_weights(sample, row, latents)
    weight = np.exp(level - level.max())
    weight /= weight.sum()
    for value, drawn in (
      (exact.mean[row], label),
      (exact.positive[row], label > 1e-9),
      (exact.negative[row], label < -1e-9),
      (exact.emotion[row, 3], sentiment >= 1.25),
    ):
      estimate = weight @ drawn
      error = math.sqrt(np.sum(weight**2 * (drawn - estimate) ** 2))
      # The sentiment's grid has steps of 0.05, hence the constant.
      assert abs(value - estimate) < 4.5 * error + 0.025, (row, value, estimate, error)


def test_label_law_is_that_of_averaged_whole_ratings():
  law = generator.label_law(np.array([0.0, 1.7]), 1, 0.5)
  # One annotator, noise 0.5: rating 0 when |noise| < 0.5, i.e. within one deviation.
  assert law[0, 3] == pytest.approx(math.erf(1 / math.sqrt(2)), abs=1e-12)
  law = generator.label_law(np.array([0.3, -2.6]), 5, 0.9)
  rng = np.random.default_rng(0)
  for row, sentiment in enumerate((0.3, -2.6)):
    noise = 0.9 * rng.standard_normal((5, 200_000))
    ratings = np.clip(np.floor(sentiment + noise + 0.5), -3, 3)
    drawn = np.bincount((ratings.sum(axis=0) + 15).astype(int), minlength=31)
    np.testing.assert_allclose(law[row], drawn / 200_000, atol=0.006)
  np.testing.assert_allclose(law.sum(axis=1), 1.0, atol=1e-12)


@pytest.mark.parametrize(
  "visible", [("text",), ("audio", "vision"), generator.MODALITIES]
)
def test_realised_errors_agree_with_the_posteriors_own_expectation(large, visible):
  posterior = bayes.bayes(OPTIONS, large, visible)
  label = large.labels["sentiment"].astype(np.float64)
  error = np.abs(posterior.median - label)
  distance = np.abs(posterior.median[:, None] - posterior.labels[None, :])
  expected = (posterior.probs * distance).sum(axis=1)
  spread = (error - expected).std() / math.sqrt(len(label))
  assert abs((error - expected).mean()) < 4 * spread
  assert abs((posterior.mean - label).mean()) < 4 * label.std() / math.sqrt(len(label))
  for low in np.arange(0.0, 1.0, 0.2):
    chosen = (posterior.positive >= low) & (posterior.positive < low + 0.2)
    if chosen.sum() >= 50:
      rate = np.mean(label[chosen] > 0)
      deviation = 0.5 / math.sqrt(chosen.sum())
      assert abs(rate - posterior.positive[chosen].mean()) < 4 * deviation


def test_no_shift_or_scaling_of_the_median_does_better(large):
  posterior = bayes.bayes(OPTIONS, large)
  distance = lambda guess: np.mean(  # noqa: E731
    (posterior.probs * np.abs(guess[:, None] - posterior.labels[None])).sum(axis=1)
  )
  best = distance(posterior.median)
  for guess in (
    posterior.median + 0.2,
    posterior.median - 0.2,
    0.9 * posterior.median,
    1.1 * posterior.median,
    posterior.mean,
  ):
    assert best < distance(guess)


def test_every_further_modality_lowers_the_expected_error(large):
  figures = bayes.optimum_by_condition(OPTIONS, large)
  assert len(figures) == 7
  mae = {name: value["mae_expected"] for name, value in figures.items()}
  for pair in ("text+audio", "text+vision", "audio+vision"):
    for one in pair.split("+"):
      assert mae[pair] < mae[one]
    assert mae["text+audio+vision"] < mae[pair]


def test_hiding_a_modality_equals_its_absence(sample):
  text = sample.modalities["text"]
  empty = Sequences(text.features, np.zeros_like(text.lengths), text.lost)
  without = dataclasses.replace(sample, modalities={**sample.modalities, "text": empty})
  hidden = bayes.bayes(OPTIONS, sample, ("audio", "vision"))
  absent = bayes.bayes(OPTIONS, without)
  np.testing.assert_array_equal(hidden.probs, absent.probs)


def test_nothing_visible_gives_the_prior(sample):
  laws = generator.build_world(OPTIONS)
  probs = bayes.bayes(OPTIONS, sample, ()).probs
  np.testing.assert_allclose(probs, np.tile(laws.prior @ laws.label_law, (40, 1)))


def test_optimum_counts_as_the_protocols_do(sample):
  three = dataclasses.replace(
    sample, labels={"sentiment": np.array([-1.0, 0.0, 2.0], np.float32)}
  )
  labels = np.array([-1.0, 0.0, 2.0])
  probs = np.array([[0.6, 0.1, 0.3], [0.45, 0.25, 0.3], [0.2, 0.5, 0.3]])
  posterior = bayes.Posterior(
    labels=labels,
    probs=probs,
    median=np.array([-1.0, -1.0, 0.0]),
    mean=probs @ labels,
    positive=probs[:, 2],
    negative=probs[:, 0],
    emotion=np.zeros((3, 4)),
  )
  # mae (0 + 1 + 2) / 3; non0: rows 1 and 3 called negative, positive: both right;
  # has0: negative has 0.6, 0.45, 0.2: called no, yes, yes against no, yes, yes.
  # Expected: 0.1 + 0.9 = 1.0, 0.25 + 0.9 = 1.15, 0.2 + 0.6 = 0.8, mean 2.95 / 3.
  figures = bayes.optimum(posterior, three)
  assert figures == pytest.approx(
    {"mae": 1.0, "mae_expected": 2.95 / 3, "acc2_non0": 1.0, "acc2_has0": 1.0}
  )


def test_an_unknown_visible_modality_is_named(sample):
  with pytest.raises(UserError, match="smell: choose from"):
    bayes.bayes(OPTIONS, sample, ("smell",))
