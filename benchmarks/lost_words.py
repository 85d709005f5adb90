"""What a lost word leaves behind: ridge regression on a frozen encoder's text.

  python -m benchmarks.lost_words --data=mosi.pkl --encoder=FOLDER --output=picture

The same words are lost three ways, at several rates: `features` loses rows of features
that were computed from the whole transcript, `hide` and `unk` lose the words before the
encoder reads them. The regression reads the mean of the visible steps, standardised;
it is fitted to complete texts, or to texts that lose as much as those of the test
(`--fit=same`), and its strength is chosen on validation. Prints markdown; `--output`
writes a picture beside it.
"""

import argparse
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from msa_jax import command
from msa_jax.errors import UserError

RATES = (0.2, 0.4, 0.6, 0.8)
WAYS = {
  "features": "features:{rate}",
  "hide": "tokens:{rate}",
  "unk": "tokens:{rate}:unk",
}
_STRENGTHS = 10.0 ** np.arange(0, 6)


def ridge(
  train: tuple[np.ndarray, np.ndarray], strength: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
  """Ridge regression on standardised columns.

  Args:
    train: x [n d] and y [n].
    strength: of the penalty on the squared weights.

  Returns:
    Mean and scale of x [d], weights [d], intercept.
  """
  x, y = train
  mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
  z = (x - mean) / scale
  penalty = strength * np.eye(z.shape[1])
  weights = np.linalg.solve(z.T @ z + penalty, z.T @ (y - y.mean()))
  return mean, scale, weights, float(y.mean())


def _predict(fitted, x: np.ndarray) -> np.ndarray:
  mean, scale, weights, intercept = fitted
  return (x - mean) / scale @ weights + intercept


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
  return float(np.corrcoef(a, b)[0, 1])


def measure(
  data: str, encoder: str, fit: str, masks: int
) -> dict[tuple[str, float], list[float]]:
  """Correlation on the test split by way and rate, one for each seed of the masks.

  Args:
    data: a file with transcripts, or token ids, and sentiment.
    encoder: folder of a frozen encoder.
    fit: `complete` texts, or the `same` as those of the test.
    masks: number of seeds.
  """
  from msa_jax.config.options import TextConfig
  from msa_jax.data import missing, readers
  from msa_jax.data.transforms.dialogues import pooled
  from msa_jax.text import features

  options = TextConfig(input="encoder", encoder=encoder)
  (corpus,) = features.with_text([readers.read(data, bare_text=True)], options)
  source = missing.source_of(corpus, features.encoder_of(options))

  def inputs(name: str, pattern: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    split = corpus.splits[name]
    drawn = missing.draw(missing.parse(pattern), split, seed)
    hidden = missing.apply(split, drawn, source)
    return pooled(hidden.modalities["text"]), split.labels["sentiment"]

  found: dict[tuple[str, float], list[float]] = {}
  for seed in range(masks):
    for way, pattern in WAYS.items():
      for rate in (0.0, *RATES):
        lossy = pattern.format(rate=rate)
        chosen = lossy if fit == "same" else "none"
        train, valid = inputs("train", chosen, seed), inputs("valid", chosen, seed)
        fits = [ridge(train, strength) for strength in _STRENGTHS]
        best = max(fits, key=lambda f, v=valid: _correlation(_predict(f, v[0]), v[1]))
        x, y = inputs("test", lossy, seed)
        found.setdefault((way, rate), []).append(_correlation(_predict(best, x), y))
  return found


def table(found: dict[tuple[str, float], list[float]]) -> str:
  """The correlations as markdown, mean over masks."""
  rates = sorted({rate for _, rate in found})
  lines = ["| words lost | " + " | ".join(f"{rate:g}" for rate in rates) + " |"]
  lines.append("|---" * (len(rates) + 1) + "|")
  for way in WAYS:
    cells = [f"{np.mean(found[way, rate]):.3f}" for rate in rates]
    lines.append(f"| `{WAYS[way].format(rate='R')}` | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def draw(found: dict[tuple[str, float], list[float]], path: pathlib.Path) -> None:
  """Draws correlation against rate, one line for each way, as SVG."""
  from msa_jax.report import style

  rates = sorted({rate for _, rate in found})
  with style.look():
    figure, (axis,) = style.panels(1, width=5.6, height=3.2)
    for number, way in enumerate(WAYS):
      means = [np.mean(found[way, rate]) for rate in rates]
      spreads = [np.std(found[way, rate]) for rate in rates]
      name = WAYS[way].format(rate="R")
      colour = style.colour(number)
      axis.errorbar(rates, means, spreads, marker="o", color=colour, label=name)
    axis.set_xlabel("share of words lost (R)")
    axis.set_ylabel("correlation (higher is better)")
    axis.legend(fontsize=8)
    target = path.with_suffix(".svg")
    figure.savefig(target, bbox_inches="tight", metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures; bad input ends with one line and exit code 2."""
  # No flags of absl: they would be those of every program of this process.
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.lost_words",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--data", required=True, help="file with transcripts and sentiment")
  add("--encoder", required=True, help="folder of a frozen text encoder")
  fits = ("complete", "same")
  add("--fit", default="complete", choices=fits, help="texts to fit the regression to")
  add("--masks", type=int, default=5, help="seeds of masks to take the mean over")
  add("--output", help="where to draw, without the suffix")
  chosen = parser.parse_args(arguments)
  if chosen.masks < 1:
    parser.error(f"--masks={chosen.masks} must be positive")
  logging.set_verbosity(logging.WARNING)
  try:
    found = measure(chosen.data, chosen.encoder, chosen.fit, chosen.masks)
    print(table(found))
    if chosen.output:
      draw(found, pathlib.Path(chosen.output))
  except UserError as error:
    command.fail(error)


if __name__ == "__main__":
  main()
