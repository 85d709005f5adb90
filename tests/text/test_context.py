"""Neighbours as context: who they are, how they are read, and that nothing but the
utterance's own states comes out."""

import dataclasses
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_text
from changes import change

from configs import lf_dnn
from msa_jax import train_state
from msa_jax.data.batching import batches, buckets
from msa_jax.data.missing import text as missing_text
from msa_jax.data.readers import read
from msa_jax.errors import UserError
from msa_jax.models.with_text_encoder import WithEncoder
from msa_jax.runs import prepare, run
from msa_jax.text import context, features, tokens, weights
from msa_jax.text.bert import TextEncoder
from msa_jax.typing import Corpus, ModelOutput, Split, Task

pytestmark = pytest.mark.slow


TEXTS = ["not bad", "a good film", "", "it was great.", "bad", "it's a film, not great"]
IDS = ["v[10]", "v[2]", "v[1]", "w[1]", "w[3]", "v[11]"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bert")
  return tiny_text.folder(folder, max_position_embeddings=40)


def corpus(texts=TEXTS, ids=IDS):
  def split(rows):
    return Split(
      ids=np.array([ids[row] for row in rows]),
      modalities={},
      labels={"sentiment": np.linspace(-1, 1, len(rows), dtype=np.float32)},
      raw_text=np.array([texts[row] for row in rows]),
      groups=np.array([ids[row].partition("[")[0] for row in rows]),
    )

  splits = {"train": split(range(6)), "test": split([5, 1])}
  return Corpus("tiny", splits, {"sentiment": Task("regression", -3.0, 3.0)})


def options(path, **changes):
  return tiny_text.group(path, **{"context": (2, 1), "finetune": "all", **changes})


def tokenised(path, made=None, **changes):
  folder = pathlib.Path(path)
  config = weights.read_config(folder)
  made = corpus() if made is None else made
  return tokens.tokenise([made], options(path, **changes), folder, config)[0]


def test_neighbours_are_of_one_video_and_in_the_order_of_their_clips():
  train = corpus().splits["train"]
  # v: clips 1, 2, 10, 11 are rows 2, 1, 0, 5.
  assert context.neighbours(train, 2, 1, "train") == [
    ([1, 2], [5]),
    ([2], [0]),
    ([], [1]),
    ([], [4]),
    ([3], []),
    ([0, 1], []),
  ]
  # What another split says of the same video is not there.
  assert context.neighbours(corpus().splits["test"], 2, 1, "test") == [
    ([1], []),
    ([], [0]),
  ]
  # Names without numbers: the file's order, as of IEMOCAP's speakers F and M.
  named = dataclasses.replace(
    train,
    ids=np.array(["d_F000", "d_M000", "d_F001", "e_F000", "e_M000", "d_M001"]),
    groups=np.array(["d", "d", "d", "e", "e", "d"]),
  )
  assert context.neighbours(named, 1, 0, "train")[5] == ([2], [])


def test_what_does_not_fit_is_cut_from_the_far_end():
  earlier, later = [[3, 4, 5], [1, 2]], [[6, 7]]
  assert context.join(earlier, later, 9) == ([1, 2, 3, 4, 5, 6, 7], False)
  assert context.join(earlier, later, 6) == ([2, 3, 4, 5, 6, 7], True)
  assert context.join(earlier, later, 4) == ([3, 4, 5, 6], True)
  assert context.join(earlier, later, 2) == ([4, 5], True)
  assert context.join(earlier, later, 0) == ([], True)
  assert context.join([], [], 5) == ([], False)


def test_tokens_are_those_that_the_tokenizer_gives_a_pair_of_texts(path):
  made = tokenised(path)
  tokenizer = tokens.load_tokenizer(pathlib.Path(path))
  text = made.splits["train"].modalities["text"]
  beside = text.context["tokens"]
  assert made.notes["text"]["context"] == [2, 1]
  for row, (earlier, later) in enumerate(
    context.neighbours(made.splits["train"], 2, 1, "train")
  ):
    near = " ".join(TEXTS[i] for i in [*earlier[::-1], *later]).strip()
    own = text.ids["tokens"][row, : text.lengths[row]].tolist()
    found = own + [each for each in beside[row].tolist() if each >= 0]
    if not TEXTS[row]:  # nothing to read, nothing beside it
      assert found == []
    elif near:
      assert found == tokenizer(TEXTS[row], near)["input_ids"]
    else:
      assert found == tokenizer(TEXTS[row])["input_ids"]
  assert (
    made.splits["test"].modalities["text"].context["tokens"].shape[1] == beside.shape[1]
  )
  short = tokenised(path, context_length=4)
  beside = short.splits["train"].modalities["text"].context["tokens"]
  assert beside.shape[1] == 4 and short.notes["text"]["context_cut"]["train"] == 3
  # Row 0: three of "a good film", which is nearest, then the separator.
  assert beside[0].tolist() == [
    *map(tiny_text.VOCABULARY.index, ["a", "good", "film", "[SEP]"])
  ]


def test_templates_of_other_tokenizers():
  """`<s> a </s></s> b </s>`, as RoBERTa, XLM-R and MPNet mark two texts."""

  def roberta(text, pair=None, **_):
    ids = [0, 7, 2] if pair is None else [0, 7, 2, 2, 7, 2]
    return {"input_ids": ids, "special_tokens_mask": [int(i != 7) for i in ids]}

  assert context.template_of(roberta) == ([2], [2])


def load(path):
  loaded = weights.load(path)
  return loaded._replace(params=jax.tree.map(jnp.asarray, loaded.params))


def of_pair(path, own, near, lost=()):
  """States of a text, by the tokenizer's own pair and its token types; nobody attends
  to the tokens in `lost`."""
  loaded = load(path)
  tokenizer = tokens.load_tokenizer(pathlib.Path(path))
  made = tokenizer(own, near)
  ids, types = (jnp.asarray([made[k]]) for k in ("input_ids", "token_type_ids"))
  seen = np.ones(ids.shape, bool)
  seen[0, list(lost)] = False
  states = TextEncoder(loaded.config).apply(
    {"params": loaded.params}, ids, jnp.asarray(seen), types
  )
  return np.asarray(states[-1][0])[: len(tokenizer(own)["input_ids"])]


def test_frozen_features_have_read_the_neighbours(path):
  (made,) = features.with_text([corpus()], options(path, finetune="none"))
  text = made.splits["train"].modalities["text"]
  assert not text.context and not text.ids
  expected = of_pair(path, "not bad", "a good film it's a film, not great")
  assert text.lengths[0] == len(expected) == 4
  np.testing.assert_allclose(text.features[0, :4], expected, atol=2e-3)
  assert not text.features[0, 4:].any() and text.lengths[2] == 0
  (alone,) = features.with_text(
    [corpus()], options(path, finetune="none", context=(0, 0))
  )
  without = alone.splits["train"].modalities["text"].features[0, :4]
  assert np.abs(without - expected).max() > 0.02


def test_texts_that_lose_words_still_read_their_neighbours(path):
  group = options(path, finetune="none")
  (made,) = features.with_text([corpus()], group)
  split = made.splits["train"]
  source = missing_text.source_of(made, features.encoder_of(group))
  lost = np.zeros(split.modalities["text"].features.shape[:2], bool)
  lost[0, 1] = True
  found = missing_text.lose(split, lost, "hide", source)
  near = "a good film it's a film, not great"
  expected = of_pair(path, "not bad", near, lost=(1,))
  np.testing.assert_allclose(
    found.features[0, [0, 2, 3]], expected[[0, 2, 3]], atol=2e-3
  )
  alone = of_pair(path, "not bad", None, lost=(1,))
  assert np.abs(alone - expected)[[0, 2, 3]].max() > 0.02
  same = split.modalities["text"].features[1:]
  np.testing.assert_array_equal(found.features[1:], same)


class Nothing(nn.Module):
  """A system that is not called."""

  def __call__(self, batch, *, train):
    raise AssertionError


class Reader(WithEncoder):
  """The encoded batch itself, to be looked at."""

  def __call__(self, batch, *, train):
    text = self.encoded(batch, train).modalities["text"]
    return ModelOutput({}, {"text": text.features, "mask": text.mask})


def test_an_encoder_inside_gives_own_states_only_and_attends_to_all(path):
  made = tokenised(path)
  batch = batches.whole(made.splits["train"], made.tasks)
  loaded = load(path)
  reader = Reader(Nothing(), loaded.config)
  apply = jax.jit(
    lambda batch: (
      reader.apply(
        {"params": {"text_encoder": loaded.params}}, batch, train=False
      ).features
    )
  )
  found = jax.device_get(apply(batch))
  lengths = made.splits["train"].modalities["text"].lengths
  steps = np.arange(found["mask"].shape[1])[None]
  np.testing.assert_array_equal(found["mask"], steps < lengths[:, None])
  assert not found["text"][~found["mask"]].any()
  for row, near in ((0, "a good film it's a film, not great"), (4, "it was great.")):
    expected = of_pair(path, TEXTS[row], near)
    np.testing.assert_allclose(found["text"][row, : lengths[row]], expected, atol=1e-5)
  # Without its text a sample hears nothing from its neighbours either.
  gone = batch.replace(available=np.zeros_like(batch.available))
  assert not np.any(apply(gone)["text"])
  # Shorter static lengths leave out nothing but padding.
  rows = np.array([3, 4])
  small = buckets.cut(
    jax.tree.map(lambda leaf: leaf[rows], batch), {"text": 7, "text context": 6}
  )
  assert small.modalities["text"].context["tokens"].shape == (2, 6)
  np.testing.assert_allclose(apply(small)["text"], found["text"][rows, :7], atol=1e-6)


def test_buckets_count_what_is_read_beside(path):
  # Utterances of one length, of which a few have neighbours.
  ids = [f"{'v' if i < 4 else i}[{i}]" for i in range(40)]
  split = Split(
    ids=np.array(ids),
    modalities={},
    labels={},
    raw_text=np.array(["a good film"] * 40),
    groups=np.array([each.partition("[")[0] for each in ids]),
  )
  made = tokenised(path, Corpus("many", {"train": split}, {}))
  chosen = buckets.choose(made.splits["train"], {"text": 5}, 2)
  assert [each["text context"] for each in chosen.lengths] == [1, 10]
  assert chosen.level.tolist() == [1] * 4 + [0] * 36


def table(tmp_path):
  lines = ["video_id,clip_id,text,label,mode"]
  for mode in ("train", "valid", "test"):
    for i in range(8):
      text = " ".join(["good film"] * (i + 1))
      lines.append(f"{mode}{i // 4},{i},{text},{i / 4 - 1},{mode}")
  (tmp_path / "c.csv").write_text("\n".join(lines) + "\n")
  return tmp_path / "c.csv"


def config(path, file, **text):
  made = change(
    lf_dnn.get_config(),
    model={"hidden_dims": {"text": 4}, "text_dim": 4, "post_dim": 4},
    data={"path": str(file), "align": "none", "modalities": ("text",), "buckets": 2},
    optim={"epochs": 1, "batch_size": 4},
  )
  return made.replace(text=options(path, **text))


@pytest.mark.parametrize("finetune", ["none", "all"])
def test_a_run_reads_later_files_in_the_same_way(path, tmp_path, finetune):
  made = config(path, table(tmp_path), finetune=finetune)
  trained = run.train(made, tmp_path / "run")
  assert run.evaluate(tmp_path / "run")["test"] == trained["splits"]["test"]
  (tmp_path / "new.csv").write_text("text\ngood film\nbad\n")
  columns = run.predicted_columns(tmp_path / "run", str(tmp_path / "new.csv"))
  assert np.isfinite(columns["sentiment"]).all()


def test_features_with_and_without_neighbours_are_not_mixed(path, tmp_path):
  made, _ = train_state.prepare(config(path, table(tmp_path), finetune="none"))
  assert made.corpus_spec.text_context == (2, 1)
  other = change(made, text={"context": (0, 0)})
  with pytest.raises(UserError, match="with 0 utterances before and 0 after each"):
    prepare.reread(other)


def test_what_contradicts_is_one_line(path, tmp_path):
  for changes, message in (
    ({"context": (1,)}, "must be two numbers"),
    ({"context": (1, -1)}, "must be two numbers"),
    ({"linguistic": True}, "neighbours have no linguistic inputs"),
    ({"context_length": 2}, "must be 3 at least"),
  ):
    with pytest.raises(UserError, match=message):
      prepare.prepare(config(path, table(tmp_path), **changes))
  features_only = change(lf_dnn.get_config(), text={"context": (2, 1)})
  with pytest.raises(UserError, match="goes with config.text.input='encoder'"):
    prepare.prepare(features_only)
  (tmp_path / "loose.csv").write_text("text,label\ngood,1\nbad,-1\n")
  with pytest.raises(UserError, match="'train' does not say which utterances belong"):
    tokenised(path, read(tmp_path / "loose.csv", bare_text=True))
