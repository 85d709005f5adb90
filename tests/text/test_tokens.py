"""Transcripts become ids, words are counted the same for every encoder, and what is
too long is cut and told."""

import dataclasses
import pathlib

import numpy as np
import pytest
import tiny_text

from msa_jax.errors import UserError
from msa_jax.text import tokens, weights
from msa_jax.text.tokens import SPECIAL, Row


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  return pathlib.Path(tiny_text.folder(tmp_path_factory.mktemp("bert")))


def tokenised(path, corpora, max_steps=0, **changes):
  options = tiny_text.group(str(path), finetune="all", **changes)
  config = weights.read_config(path)
  return tokens.tokenise(corpora, options, path, config, max_steps)


def ids_of(pieces):
  return [tiny_text.VOCABULARY.index(piece) for piece in pieces.split()]


def test_transcripts_become_ids_with_the_word_of_each(path):
  (corpus,) = tokenised(path, [tiny_text.corpus()])
  train = corpus.splits["train"]
  text = train.modalities["text"]
  assert text.lengths.tolist() == [5, 6, 4, 12]
  assert text.features.shape == (4, 12, 0)
  last = ids_of("[CLS] it ' s a bad ##ly bad film , not [SEP]")
  assert text.ids["tokens"][3].tolist() == last
  # it's is one word, as is film, with its comma: words are what spaces separate.
  assert train.extras["text_words"][3].tolist() == [
    *(-1, 0, 0, 0, 1, 2, 2, 3, 4, 4, 5, -1)
  ]
  assert text.ids["tokens"][2].tolist() == ids_of("[CLS] bad . [SEP]") + [0] * 8
  assert train.extras["text_words"][2].tolist() == [-1, 0, 0] + [-1] * 9
  assert set(train.modalities) == {"audio", "text"}
  assert corpus.notes["text"]["tokens"] == {"train": "raw_text", "test": "raw_text"}


def test_length_is_that_of_the_training_texts_and_what_is_cut_is_counted(path, caplog):
  (corpus,) = tokenised(path, [tiny_text.corpus()])
  test = corpus.splits["test"].modalities["text"]
  # Fourteen tokens into twelve, the last of which is the separator; no text, no steps.
  assert test.lengths.tolist() == [3, 0, 12]
  assert test.ids["tokens"][2, -1] == ids_of("[SEP]")[0]
  assert corpus.notes["text"]["max_length"] == 12
  assert corpus.notes["text"]["truncated"] == {"test": 1}
  assert "1 of 7 transcripts are longer than 12 tokens" in caplog.text
  (short,) = tokenised(path, [tiny_text.corpus()], max_length=5)
  assert short.notes["text"]["truncated"] == {"train": 2, "test": 1}
  assert short.splits["train"].modalities["text"].lengths.max() == 5
  (bounded,) = tokenised(path, [tiny_text.corpus()], max_length=6, max_steps=4)
  assert bounded.notes["text"]["max_length"] == 4


def test_encoders_positions_bound_the_length(tmp_path):
  path = pathlib.Path(tiny_text.folder(tmp_path, max_position_embeddings=7))
  (corpus,) = tokenised(path, [tiny_text.corpus()])
  assert corpus.notes["text"]["max_length"] == 7
  # Corpora of one run have one length, whichever holds the longest text.
  small = dataclasses.replace(
    tiny_text.corpus(),
    splits={"train": subset(tiny_text.corpus().splits["train"], slice(0, 1))},
  )
  one, other = tokenised(path, [small, tiny_text.corpus()])
  assert one.notes["text"]["max_length"] == other.notes["text"]["max_length"] == 7


def subset(split, rows):
  return dataclasses.replace(
    split,
    ids=split.ids[rows],
    modalities={},
    labels={},
    raw_text=split.raw_text[rows],
  )


def with_text_bert(change=lambda ids: ids, raw=True):
  """The corpus with MMSA's field, made of six tokens of each text by hand."""
  rows = [
    "[CLS] a good film [SEP]",
    "[CLS] it was not great [SEP]",
    "[CLS] bad . [SEP]",
    "[CLS] it ' s a [SEP]",
  ]
  field = np.zeros((4, 3, 6), np.int32)
  for row, pieces in zip(field, rows, strict=True):
    ids = np.array(ids_of(pieces))
    row[0, : len(ids)] = change(ids)
    row[1, : len(ids)] = 1
  made = tiny_text.corpus()
  train = dataclasses.replace(
    made.splits["train"],
    extras={"text_bert": field},
    raw_text=made.splits["train"].raw_text if raw else None,
  )
  return dataclasses.replace(made, splits={"train": train})


def test_ids_of_the_file_count_where_they_are_of_this_vocabulary(path):
  (corpus,) = tokenised(path, [with_text_bert()])
  train = corpus.splits["train"]
  assert corpus.notes["text"]["tokens"] == {"train": "text_bert"}
  assert corpus.notes["text"]["max_length"] == 6
  assert corpus.notes["text"]["truncated"] == {"train": 1}  # in the file already
  np.testing.assert_array_equal(
    train.modalities["text"].ids["tokens"], train.extras["text_bert"][:, 0]
  )
  assert train.extras["text_words"][3].tolist() == [-1, 0, 0, 0, 1, -1]
  (other,) = tokenised(path, [with_text_bert(lambda ids: ids[::-1])])
  assert other.notes["text"]["tokens"] == {"train": "raw_text"}
  (wider,) = tokenised(path, [with_text_bert(lambda ids: ids + 900)])
  assert wider.notes["text"]["tokens"] == {"train": "raw_text"}


def test_without_transcripts_the_ids_of_the_file_are_spelt_out(path):
  (corpus,) = tokenised(path, [with_text_bert(raw=False)], linguistic=True)
  train = corpus.splits["train"]
  assert train.extras["text_words"][1].tolist() == [-1, 0, 1, 2, 3, -1]
  assert train.modalities["text"].ids["word_polarity"][0].tolist() == [2, 2, 1, 2, 2, 2]
  bare = dataclasses.replace(
    tiny_text.corpus(),
    splits={
      "train": dataclasses.replace(tiny_text.corpus().splits["train"], raw_text=None)
    },
  )
  with pytest.raises(UserError, match="split train has no raw_text"):
    tokenised(path, [bare])


def test_availability_gets_a_column_where_the_text_is_new(path):
  made = tiny_text.corpus()
  train = dataclasses.replace(
    made.splits["train"], available=np.array([[True], [False], [True], [False]])
  )
  made = dataclasses.replace(
    made,
    splits={"train": train},
    notes={"unavailable_modalities": ["text", "vision"]},
  )
  (corpus,) = tokenised(path, [made])
  assert corpus.splits["train"].available.tolist() == [
    [True, True],
    [True, False],
    [True, True],
    [True, False],
  ]
  assert corpus.notes["unavailable_modalities"] == ["vision"]


def test_linguistic_inputs_are_those_of_the_tokens_words(path):
  (corpus,) = tokenised(path, [tiny_text.corpus()], linguistic=True)
  text = corpus.splits["train"].modalities["text"]
  assert set(text.ids) == {"tokens", "pos", "word_polarity", "sentence_polarity"}
  # [CLS] it ' s a bad ##ly bad film , not [SEP]: both pieces of badly are an adverb.
  assert text.ids["pos"][3].tolist() == [4, 4, 4, 4, 4, 2, 2, 1, 3, 4, 2, 4]
  assert text.ids["word_polarity"][3].tolist() == [2, 2, 2, 2, 2, 0, 0, 0, 2, 2, 2, 2]
  assert (text.ids["sentence_polarity"] == 5).all()
  assert "textblob" in corpus.notes["text"]["annotator"]
  assert text.ids["pos"].dtype == np.int32


def test_words_are_the_same_for_another_kind_of_tokenizer(path, tmp_path):
  """Byte-level pairs, whose tokens may begin with the space before a word."""
  from tokenizers import Tokenizer, models, pre_tokenizers, processors

  pieces = ["<s>", "<pad>", "</s>", "<unk>", *"Ġadfgilmo", "go", "od", "good", "Ġa"]
  merges = [("g", "o"), ("o", "d"), ("go", "od"), ("Ġ", "a")]
  made = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.post_processor = processors.RobertaProcessing(
    ("</s>", 2), ("<s>", 0), trim_offsets=False
  )
  made.save(str(tmp_path / "tokenizer.json"))
  kind = '{"tokenizer_class": "PreTrainedTokenizerFast"}'
  (tmp_path / "tokenizer_config.json").write_text(kind)
  (row,) = tokens.encode(tokens.load_tokenizer(tmp_path), ["good film a"])
  assert [pieces[i] for i in row.ids] == [
    *("<s>", "good", "Ġ", "f", "i", "l", "m", "Ġa", "</s>")
  ]
  assert tokens.words(row) == [-1, 0, 1, 1, 1, 1, 1, 2, -1]
  (row,) = tokens.encode(tokens.load_tokenizer(path), ["good film a"])
  assert tokens.words(row) == [-1, 0, 1, 2, -1]


def test_words_of_chinese_are_characters_and_leading_spaces_belong_to_none():
  row = Row([1, 2, 3, 4], [SPECIAL, (0, 1), (1, 3), (3, 7)], "我很好 ab c")
  assert tokens.words(row) == [-1, 0, 1, 3]
  assert tokens.words(Row([7], [(0, 1)], " ")) == [-1]


def test_tokenizers_that_lack_are_one_line(tmp_path, monkeypatch):
  path = pathlib.Path(tiny_text.folder(tmp_path / "a"))
  import transformers

  class Slow:
    is_fast = False

  with monkeypatch.context() as patch:
    patch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: Slow)
    with pytest.raises(UserError, match=r"its tokenizer needs a tokenizer\.json"):
      tokens.load_tokenizer(path)
  (path / "vocab.txt").unlink()
  with pytest.raises(
    UserError, match=r"no readable tokenizer \(none of tokenizer.json"
  ):
    tokens.load_tokenizer(path)
  monkeypatch.setitem(__import__("sys").modules, "transformers", None)
  with pytest.raises(UserError, match="made by transformers: pip install"):
    tokens.load_tokenizer(path)


def test_a_tokenizer_of_more_words_than_the_encoder_has_is_refused(tmp_path):
  narrow = pathlib.Path(tiny_text.folder(tmp_path, vocab_size=18))
  with pytest.raises(UserError, match="tokenizer gives id 18, its encoder has 18 rows"):
    tokenised(narrow, [tiny_text.corpus()])
