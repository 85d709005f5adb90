"""A pipeline is fitted once, saved, and replayed on later corpora."""

import dataclasses
import json
from typing import ClassVar

import numpy as np
import pytest
import ragged
from ragged import fit_apply

from msa_jax.data.transforms import pipeline, transform
from msa_jax.data.transforms.pipeline import Pipeline
from msa_jax.errors import UserError


@pytest.fixture(name="corpus")
def _corpus():
  return ragged.corpus()


@dataclasses.dataclass(frozen=True)
class Tally(transform.Transform):
  """Notes the number of training samples that it was fitted on, and its option."""

  name: ClassVar[str] = "tally"
  mark: str

  def fit(self, corpus):
    return {"size": np.asarray(len(corpus.splits["train"]))}

  def apply(self, corpus, state):
    seen = (*corpus.notes.get("seen", ()), (self.mark, int(state["size"])))
    return dataclasses.replace(corpus, notes={**corpus.notes, "seen": seen})


class FirstOnly(Tally):
  name = "first"
  occasions = transform.FIRST_RUN_ONLY


class OwnOnly(Tally):
  name = "own"
  occasions = transform.OWN_CORPUS_ONLY
  redrawn = True


class OtherOnly(Tally):
  name = "other"
  occasions = transform.OTHER_CORPORA_ONLY


TALLIES = (Tally("a"), FirstOnly("b"), OwnOnly("c"), OtherOnly("d"))


def _smaller(corpus):
  split = ragged.make_split(5, size=4)
  return dataclasses.replace(corpus, splits={"train": split})


def test_transforms_are_replayed_on_their_occasions_in_order(corpus):
  fitted, first = Pipeline(TALLIES).fit_apply(corpus)
  assert first.notes["seen"] == (("a", 9), ("b", 9), ("c", 9))
  # Only what is redrawn looks at the later corpus.
  own = fitted.apply(_smaller(corpus), transform.OWN)
  assert own.notes["seen"] == (("a", 9), ("c", 4))
  other = fitted.apply(_smaller(corpus), transform.OTHER)
  assert other.notes["seen"] == (("a", 9), ("d", 9))
  before = fitted.before("own").apply(corpus, transform.OWN)
  assert before.notes["seen"] == (("a", 9),)
  after = fitted.after("own").apply(corpus, transform.OTHER)
  assert after.notes["seen"] == (("d", 9),)


def test_each_transform_is_fitted_on_what_those_before_it_made(corpus):
  @dataclasses.dataclass(frozen=True)
  class Halve(transform.Transform):
    name: ClassVar[str] = "halve"

    def apply(self, corpus, state):
      return _smaller(corpus)

  _, found = Pipeline((Halve(), Tally("a"))).fit_apply(corpus)
  assert found.notes["seen"] == (("a", 4),)


def test_a_saved_pipeline_does_the_same(corpus, tmp_path):
  fitted, first = fit_apply(corpus, "pool", max_steps=4, clusters=3)
  path = tmp_path / "preprocessing.npz"
  pipeline.save(fitted, path)
  loaded = pipeline.load(path, fitted.transforms, {})
  for name, state in fitted.states.items():
    assert list(state) == list(loaded.states[name])
    for key, value in state.items():
      np.testing.assert_array_equal(value, loaded.states[name][key])
  again = loaded.apply(corpus, transform.OWN)
  for name, sequences in first.splits["test"].modalities.items():
    found = again.splits["test"].modalities[name]
    np.testing.assert_array_equal(sequences.features, found.features)
    np.testing.assert_array_equal(sequences.lengths, found.lengths)
  assert again.notes == first.notes


def test_what_is_redrawn_is_not_saved_and_later_transforms_are_left_out(
  corpus, tmp_path
):
  fitted, _ = Pipeline(TALLIES).fit_apply(corpus)
  path = tmp_path / "preprocessing.npz"
  pipeline.save(fitted, path)
  with np.load(path) as file:
    assert set(file) == {"transforms", "tally/size", "first/size", "other/size"}
    described = json.loads(str(file["transforms"]))
  assert described == fitted.describe()
  assert described[0] == {"name": "tally", "mark": "a"}

  class Newer(Tally):
    name = "newer"

  loaded = pipeline.load(path, (*TALLIES, Newer("e")), {})
  assert loaded.transforms == TALLIES
  with pytest.raises(UserError, match="has the state of other; .*know tally, first"):
    pipeline.load(path, TALLIES[:3], {})


def test_files_of_version_0_1_are_replayed(corpus, tmp_path):
  fitted, _ = fit_apply(corpus, "pool", max_steps=4, clusters=3)
  states, path = fitted.states, tmp_path / "preprocessing.npz"
  settings = {
    "widths": {"text": 4, "audio": 3},
    "align": "pool",
    "max_steps": 4,
    "unseen": [],
    "anchor_steps": 4,
  }
  np.savez(
    path,
    settings=np.asarray(json.dumps(settings)),
    **states["standardize"],
    **states["frame_clusters"],
  )
  loaded = pipeline.load(path, fitted.transforms, ragged.SENTIMENT)
  for name, state in states.items():
    found = loaded.states.get(name, {})
    assert set(state) == set(found)
    for key, value in state.items():
      np.testing.assert_array_equal(value, found[key])
  assert json.loads(str(loaded.states["relabel"]["tasks"]))["sentiment"]["high"] == 3
  assert loaded.states["select_modalities"]["names"].tolist() == ["text", "audio"]


def test_damaged_files_are_refused_in_one_line(tmp_path):
  array, other = tmp_path / "array.npz", tmp_path / "other.npz"
  np.save(array.with_suffix(".npy"), np.zeros(3))
  array.with_suffix(".npy").rename(array)
  np.savez(other, mean=np.zeros(3))
  empty = tmp_path / "empty.npz"
  empty.write_bytes(b"")
  broken = tmp_path / "broken.npz"
  broken.write_bytes(other.read_bytes()[:50])
  for path in (array, other, empty, broken, tmp_path / "absent.npz"):
    with pytest.raises(UserError, match=f"{path.name} cannot be read") as caught:
      pipeline.load(path, TALLIES, {})
    assert "\n" not in str(caught.value)
