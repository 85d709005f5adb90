"""Words that are lost before a frozen encoder reads them leave no trace in features."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_text
from changes import change

from configs import lf_dnn
from msa_jax.data import missing
from msa_jax.data.missing import text as of_text
from msa_jax.data.readers import npz, read
from msa_jax.data.transforms import joint
from msa_jax.errors import UserError
from msa_jax.runs import prepare, run
from msa_jax.studies.missing import grid
from msa_jax.text import features, weights
from msa_jax.text.bert import TextEncoder

pytestmark = pytest.mark.slow


WORDS = ["a", "bad", "good", "film", "was", "not", "great", "it"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  return tiny_text.folder(tmp_path_factory.mktemp("bert"), max_position_embeddings=16)


def _texts(n, seed):
  random = np.random.default_rng(seed)
  return [" ".join(random.choice(WORDS, random.integers(3, 9))) for _ in range(n)]


TEXTS = {"train": _texts(16, 0), "valid": _texts(6, 1), "test": _texts(8, 2)}


def _file(folder, texts):
  lines = ["id,text,label,mode"]
  for name, each in texts.items():
    lines += [f"{name}{i},{t},{(i % 7) - 3},{name}" for i, t in enumerate(each)]
  (folder / "c.csv").write_text("\n".join(lines) + "\n")
  return folder / "c.csv"


def _encoded(path, file):
  options = tiny_text.group(path)
  (corpus,) = features.with_text([read(file, bare_text=True)], options)
  return corpus, missing.source_of(corpus, features.encoder_of(options))


def _lost(corpus, source, pattern):
  split = corpus.splits["test"]
  masks = missing.draw(missing.parse(pattern), split, 0)
  steps = masks.lost["text"]
  return steps, of_text.lose(split, steps, masks.pattern.way, source)


def _alone(path, ids, seen):
  """Last states of one text, by an encoder that attends to `seen` alone."""
  loaded = weights.load(path)
  params = jax.tree.map(jnp.asarray, loaded.params)
  encode = jax.jit(TextEncoder(loaded.config).apply)
  return encode({"params": params}, ids[None], seen[None])[-1][0]


def test_hidden_words_are_attended_to_by_none(path, tmp_path):
  corpus, source = _encoded(path, _file(tmp_path, TEXTS))
  steps, made = _lost(corpus, source, "tokens:0.5")
  split = corpus.splits["test"]
  complete, ids = split.modalities["text"], split.extras["text_tokens"]
  assert steps.any(axis=1).sum() > 4
  np.testing.assert_array_equal(made.lost, steps)
  for row in np.flatnonzero(steps.any(axis=1))[:2]:
    length = int(complete.lengths[row])
    kept = ~steps[row, :length]
    # Whatever id stands at a hidden place.
    other = np.where(kept, ids[row, :length], 7)
    expected = _alone(path, jnp.asarray(other), jnp.asarray(kept))
    found = made.features[row, :length]
    np.testing.assert_allclose(found[kept], expected[kept], atol=1e-3)
    # Features that are lost afterwards leave the others as they were.
    assert np.abs(found - complete.features[row, :length])[kept].max() > 4e-3


def test_unknown_words_are_encoded_as_such(path, tmp_path):
  corpus, source = _encoded(path, _file(tmp_path, TEXTS))
  assert source.unknown == tiny_text.VOCABULARY.index("[UNK]")
  steps, made = _lost(corpus, source, "tokens:0.5:unk")
  words = corpus.splits["test"].extras["text_words"]
  spelled = []
  for text, lost, of in zip(TEXTS["test"], steps, words, strict=True):
    gone = set(of[lost].tolist())
    parts = text.split()
    spelled.append(" ".join("x" if i in gone else w for i, w in enumerate(parts)))
  assert spelled != TEXTS["test"]
  other = tmp_path / "other"
  other.mkdir()
  expected = _encoded(path, _file(other, {**TEXTS, "test": spelled}))[0]
  np.testing.assert_allclose(
    made.features, expected.splits["test"].modalities["text"].features, atol=2e-3
  )
  assert made.lost is None


def _config(path, file, **missing_content):
  return change(
    lf_dnn.get_config(),
    data={"path": str(file), "max_steps": 0, "align": "none", "buckets": 0},
    optim={"epochs": 1, "batch_size": 8},
    missing=missing_content,
  ).replace(text=tiny_text.group(path))


def _spoilt(corpus, texts, pattern):
  """The transcripts with another word wherever one is lost under a pattern."""
  changed = dict(texts)
  for name in ("train", "valid", "test"):
    split = corpus.splits[name]
    lost = missing.draw(missing.parse(pattern), split, 0).lost["text"]
    rows = []
    for text, gone, of in zip(
      texts[name], lost, split.extras["text_words"], strict=True
    ):
      places = set(of[gone].tolist())
      rows.append(
        " ".join(
          WORDS[WORDS.index(w) - 1] if i in places else w
          for i, w in enumerate(text.split())
        )
      )
    changed[name] = rows
  assert changed != texts
  return changed


def test_a_run_knows_nothing_of_what_it_lost(path, tmp_path):
  """What it trains and is evaluated on is the same to the bit, whatever the lost words
  were; under `features` it is not."""
  folders = [tmp_path / "a", tmp_path / "b"]
  for folder in folders:
    folder.mkdir()
  first = _file(folders[0], TEXTS)
  corpus = _encoded(path, first)[0]
  second = _file(folders[1], _spoilt(corpus, TEXTS, "tokens:0.5"))
  for pattern, same in (("tokens:0.5", True), ("features:0.5", False)):
    ours, theirs = (
      prepare.prepare(_config(path, file, train=pattern, eval=pattern)).corpus
      for file in (first, second)
    )
    for name, split in ours.splits.items():
      text, other = split.modalities["text"], theirs.splits[name].modalities["text"]
      np.testing.assert_array_equal(text.lost, other.lost)
      seen = ~text.lost[..., None]
      equal = np.array_equal(text.features * seen, other.features * seen)
      assert equal is same, (pattern, name)


def test_a_grid_encodes_what_is_left(path, tmp_path):
  file = _file(tmp_path, TEXTS)
  summary = run.train(_config(path, file), tmp_path / "run")
  wanted = "tokens:0.6,tokens:0.6:unk,features:0.6,tokens:0"
  rows = grid(tmp_path / "run", wanted)["grids"]
  errors = {
    name: row[0]["figures"]["sentiment"]["mae"]["mean"] for name, row in rows.items()
  }
  assert len(set(errors.values())) == 4
  assert errors["tokens:0"] == summary["splits"]["test"]["sentiment"]["mae"]["mean"]
  trained = run.train(_config(path, file, eval="tokens:0.6"), tmp_path / "other")
  ours = trained["splits"]["test"]["sentiment"]["mae"]["mean"]
  assert ours == errors["tokens:0.6"]  # one seed, the same parameters
  assert run.evaluate(tmp_path / "other")["test"] == trained["splits"]["test"]
  with pytest.raises(UserError, match="--missing=tokens:0.6:features: .*:hide, :unk"):
    grid(tmp_path / "run", "tokens:0.6:features")


def test_features_made_beforehand_keep_their_tokens_but_not_their_encoder(
  path, tmp_path
):
  corpus, _ = _encoded(path, _file(tmp_path, TEXTS))
  npz.save(corpus, tmp_path / "made.npz")
  made = read(tmp_path / "made.npz")
  np.testing.assert_array_equal(
    made.splits["test"].extras["text_tokens"],
    corpus.splits["test"].extras["text_tokens"],
  )
  config = _config(path, tmp_path / "made.npz", eval="tokens:0.5")
  plain = config.replace("text", input="features", encoder="")
  with pytest.raises(UserError, match="choose 'features:0.5'"):
    prepare.prepare(plain)
  # Its transcripts are encoded again where the encoder is named.
  again = prepare.prepare(config).corpus.splits["test"].modalities["text"]
  assert again.lost.any()


def test_joined_texts_keep_what_is_known_of_their_steps(path):
  options = tiny_text.group(path)
  short = tiny_text.corpus()
  (long,) = features.with_text([tiny_text.corpus()], options)
  (short,) = features.with_text([short], dataclasses.replace(options, max_length=4))
  split = joint.join([short, long]).splits["train"]
  assert split.extras["text_tokens"].shape == (8, 12)
  assert (split.extras["text_words"][:4, 4:] == -1).all()
  np.testing.assert_array_equal(
    split.extras["text_tokens"][4:], long.splits["train"].extras["text_tokens"]
  )
