"""A run that was trained on clips predicts clips, by its own extractors or none."""

import csv
import dataclasses
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tiny_clips
from tiny_clips import TINY, film, gray, tone, wav

import msa_jax
from msa_jax.clips import listing, making, recipe
from msa_jax.clips.recipe import Recipe
from msa_jax.data import read
from msa_jax.errors import UserError
from msa_jax.runs import clip_predictions, run
from msa_jax.runs.open import open_run

SUPPORT = pathlib.Path(__file__).resolve().parents[1] / "support"
OPTIONS = {"optim.epochs": 2, "optim.batch_size": 8, "data.standardize": ()}


@pytest.fixture(scope="module")
def extractors():
  with pytest.MonkeyPatch.context() as patch:
    yield tiny_clips.registered(patch)


@pytest.fixture(scope="module")
def trained(extractors, tmp_path_factory):
  """Folder of clips, the corpus made of them and the run that was trained on it."""
  root = tmp_path_factory.mktemp("clips")
  rows = []
  for number in range(12):
    level, path = 0.02 + 0.03 * number, f"v{number}.mkv"
    film(
      root / "C" / path,
      [gray(20 * number)] * 6,
      audio=tone(200, 0.5 + 0.1 * number, level=level),
    )
    mode = ("train", "train", "valid", "test")[number % 4]
    rows.append(f"{path},{'word ' * number},{number / 4 - 1.5},{mode}\n")
  (root / "l.csv").write_text("path,text,sentiment,mode\n" + "".join(rows))
  found = listing.of_list(root / "C", root / "l.csv")
  making.make(found, Recipe(TINY), root / "mine.npz")
  options = OPTIONS | {"data.path": str(root / "mine.npz")}
  msa_jax.train("lf_dnn", workdir=root / "run", options=options)
  opened = open_run(root / "run")  # once, so that its program is compiled once
  with pytest.MonkeyPatch.context() as patch:
    for module in (run, clip_predictions):
      patch.setattr(module, "open_run", lambda _: opened)
    yield root


def rows(path):
  with path.open(newline="") as stream:
    return list(csv.DictReader(stream))


def predicted(root, path, **options):
  output = path.parent / "out.csv"
  made = clip_predictions.predict(root / "run", path, output, **options)
  return made, {row["id"]: float(row["sentiment"]) for row in rows(output)}


def test_clips_are_predicted_as_the_corpus_that_was_made_of_them_is(trained, tmp_path):
  expected = run.predicted_columns(trained / "run", str(trained / "mine.npz"))
  expected = dict(zip(expected["id"].tolist(), expected["sentiment"], strict=True))
  assert np.ptp(list(expected.values())) > 1e-3
  (tmp_path / "C").symlink_to(trained / "C")
  # Without transcripts, what they said is missing: some other prediction.
  _, bare = predicted(trained, tmp_path / "C")
  assert abs(bare["v9.mkv"] - expected["v9.mkv"]) > 1e-4
  listed = trained / "C" / "all.csv"
  text = (trained / "l.csv").read_text()
  listed.write_text(text)
  _, found = predicted(trained, listed)
  assert list(found) == [f"v{number}.mkv" for number in range(12)]
  for name, value in found.items():
    assert value == pytest.approx(expected[name], abs=1e-5)


def test_one_clip_is_predicted_as_in_company(trained):
  path = trained / "C" / "v5.mkv"
  (path.parent / "v5.txt").write_text("word " * 5)
  expected = run.predicted_columns(trained / "run", str(trained / "mine.npz"))
  expected = dict(zip(expected["id"].tolist(), expected["sentiment"], strict=True))
  made, found = predicted(trained, path)
  assert list(found) == ["v5.mkv"] and made.failed is None and not made.differences
  assert found["v5.mkv"] == pytest.approx(expected["v5.mkv"], abs=1e-5)
  (path.parent / "v5.txt").unlink()


def test_clips_that_fail_are_listed_beside_the_others(trained, tmp_path):
  wav(tmp_path / "C" / "good.wav", tone(200, 1.0))
  (tmp_path / "C" / "bad.mp4").write_bytes(b"no clip at all, but some text" * 9)
  made, found = predicted(trained, tmp_path / "C")
  assert list(found) == ["good.wav"]
  assert made.failed == tmp_path / "out.failed.csv"
  assert [row["id"] for row in rows(made.failed)] == ["bad.mp4"]
  (tmp_path / "C" / "good.wav").unlink()
  with pytest.raises(UserError, match=r"none of 1 clips.*bad.mp4: not a readable clip"):
    predicted(trained, tmp_path / "C")


def test_another_extractor_is_refused_in_one_line_or_taken_as_asked(
  trained, extractors, monkeypatch
):
  about = dataclasses.replace(extractors.about, version="2", settings={"half": 0.25})
  monkeypatch.setattr(extractors, "about", about)
  path = trained / "C" / "v5.mkv"
  with pytest.raises(UserError, match="another extractor") as refused:
    predicted(trained, path)
  message = str(refused.value)
  assert "version '1', here '2'" in message and "half 0.5, here 0.25" in message
  assert "--allow-other-extractor" in message and "\n" not in message
  made, found = predicted(trained, path, allow_other_extractor=True)
  assert list(found) == ["v5.mkv"] and len(made.differences) == 2


def test_a_package_of_another_version_is_named_with_the_command(
  trained, extractors, monkeypatch
):
  stored = read(trained / "mine.npz").notes["clips"]
  stored["extractors"]["audio"]["packages"] = {"ears": "1.0"}
  tools = recipe.build(recipe.of_notes(stored))
  with pytest.raises(UserError, match=r"ears 1.0, here None \(pip install ears==1.0\)"):
    recipe.check_same(stored, tools, allow=False)


def test_a_run_of_features_takes_no_clips(trained, tmp_path):
  corpus = read(trained / "mine.npz")
  notes = {key: value for key, value in corpus.notes.items() if key != "clips"}
  with pytest.raises(UserError, match="not trained on a corpus that"):
    making.read(trained / "C", notes)


def test_the_command_says_what_failed_and_ends_with_three(trained, tmp_path):
  wav(tmp_path / "C" / "good.wav", tone(200, 1.0))
  (tmp_path / "C" / "bad.mp4").touch()
  flags = [f"--workdir={trained / 'run'}", f"--input={tmp_path / 'C'}"]
  flags.append(f"--output={tmp_path / 'out.csv'}")
  # A process of its own: flags of two programs do not go together in one.
  program = (
    "import pytest, tiny_clips; tiny_clips.registered(pytest.MonkeyPatch());"
    "from msa_jax import main; main.run_main()"
  )
  command = [sys.executable, "-c", program, "--mode=predict", *flags]
  path = os.pathsep.join([str(SUPPORT), *sys.path])
  environment = {**os.environ, "PYTHONPATH": path}
  done = subprocess.run(
    command, capture_output=True, text=True, check=False, env=environment
  )
  assert done.returncode == 3, done.stderr
  assert "failed: bad.mp4: the file is empty" in done.stderr
  assert [row["id"] for row in rows(tmp_path / "out.csv")] == ["good.wav"]


def test_a_page_shows_what_counts_by_hiding_it(trained, tmp_path):
  from msa_jax.report import clips as clips_report

  listed = trained / "C" / "one.csv"
  listed.write_text("path,text\nv9.mkv,word word WORDY\n")
  made = clip_predictions.predict(trained / "run", listed, tmp_path / "out.csv")
  (split,) = made.corpus.splits.values()
  found = clips_report.spans(split, 0)
  # 1.4 s of sound and .6 s of pictures: two stretches, one; and three words.
  assert [span.modality for span in found] == ["text"] * 3 + ["audio"] * 2 + ["vision"]
  effects = clips_report.contributions(made.opened, made.corpus, 0, found)
  assert next(iter(effects)) == "sentiment" and effects["sentiment"].shape == (6,)
  # By hand: the same clip without pictures at all.
  vision = split.modalities["vision"]
  gone = dataclasses.replace(vision, lengths=np.zeros_like(vision.lengths))
  without = dataclasses.replace(split, modalities={**split.modalities, "vision": gone})
  corpus = dataclasses.replace(made.corpus, splits={"predict": without})
  rest = clip_predictions.columns_of(made.opened, corpus)["sentiment"][0]
  expected = made.columns["sentiment"][0] - rest
  assert abs(expected) > 1e-4
  assert effects["sentiment"][5] == pytest.approx(expected, abs=1e-5)
  page = clips_report.write(made, tmp_path / "page.html").read_text()
  assert page.count("<span style") == 3 and ">WORDY</span>" in page
  assert (
    "data:image/png;base64" in page and f"{made.columns['sentiment'][0]:.3f}" in page
  )
  listed.unlink()
