"""Csv files of transcripts and labels become corpora; what does not fit is named."""

import numpy as np
import pytest

from msa_jax.data.__main__ import main
from msa_jax.data.readers import read, transcripts
from msa_jax.errors import UserError


def write(tmp_path, content, name="c.csv"):
  path = tmp_path / name
  path.write_text(content, encoding="utf-8")
  return path


def test_numbers_are_regression_labels_and_clips_are_named_by_video(tmp_path):
  path = write(
    tmp_path,
    'video_id,clip_id,Text,label,mode\na,1,"so, good",2.5,train\na,2,bad,,train\n'
    "b,1,fine,-1,val\n",
  )
  corpus = transcripts.load(path)
  assert list(corpus.splits) == ["train", "valid"]
  train = corpus.splits["train"]
  assert train.ids.tolist() == ["a$_$1", "a$_$2"]
  assert train.groups.tolist() == ["a", "a"]
  assert train.raw_text.tolist() == ["so, good", "bad"]
  np.testing.assert_array_equal(train.labels["sentiment"], [2.5, np.nan])
  task = corpus.tasks["sentiment"]
  assert (task.kind, task.low, task.high, task.protocol) == (
    "regression",
    -3,
    3,
    "mosi",
  )


def test_names_are_classes_and_ids_that_splits_share_get_the_split(tmp_path):
  path = write(
    tmp_path,
    "dialogue\tutterance\tspeaker\ttext\temotion\tsentiment\tmode\n"
    "0\t0\tJoey\thi, you\tjoy\tpositive\ttrain\n0\t0\tRoss\toh\tanger\t\tdev\n",
    "c.tsv",
  )
  corpus = transcripts.load(path)
  assert corpus.tasks["emotion"].classes == ("anger", "joy")
  assert corpus.splits["train"].labels["emotion"].tolist() == [1]
  assert corpus.splits["valid"].labels["sentiment"].tolist() == [-1]
  assert corpus.splits["valid"].ids.tolist() == ["valid_0$_$0"]
  assert corpus.splits["valid"].groups.tolist() == ["valid_0"]
  assert corpus.splits["train"].extras["speaker"].tolist() == ["Joey"]


def test_emotions_by_number_are_classes_and_have_no_order(tmp_path):
  content = "text,label,emotion\na,0.5,10\nb,1,2\nc,,nan\n"
  corpus = transcripts.load(write(tmp_path, content))
  assert corpus.tasks["emotion"].classes == ("2", "10")
  assert corpus.splits["train"].labels["emotion"].tolist() == [1, 0, -1]
  assert corpus.tasks["sentiment"].high == 1.0


def test_dialogues_are_known_whatever_utterances_are_called(tmp_path):
  corpus = transcripts.load(write(tmp_path, "id,dialogue,text\na,7,hi\nb,7,oh\n"))
  assert corpus.splits["predict"].ids.tolist() == ["a", "b"]
  assert corpus.splits["predict"].groups.tolist() == ["7", "7"]


def test_files_without_splits_or_labels_are_for_prediction(tmp_path):
  corpus = transcripts.load(write(tmp_path, "sentence\nhello there\n"))
  assert list(corpus.splits) == ["predict"] and not corpus.tasks
  assert corpus.splits["predict"].ids.tolist() == ["row-0"]
  assert transcripts.is_transcript(write(tmp_path, "id,Sentence\n"))
  assert not transcripts.is_transcript(write(tmp_path, "context,label\n"))


def test_feature_files_are_padded_to_the_longest(tmp_path):
  np.save(tmp_path / "a.npy", np.ones((2, 3), np.float32))
  np.save(tmp_path / "b.npy", np.arange(1.0, 4.0, dtype=np.float32))
  path = write(tmp_path, "id,text,audio_path,label\nx,hi,a.npy,1\ny,oh,b.npy,2\n")
  corpus = read(path)
  audio = corpus.splits["train"].modalities["audio"]
  assert audio.lengths.tolist() == [2, 1]
  np.testing.assert_array_equal(audio.features[1], [[1, 2, 3], [0, 0, 0]])


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("text,label\na\n", "row 2 has 1 cells, the header 2"),
    ("text,label\n", "a line below the header"),
    ("", "a line below the header"),
    ("label\n1\n", "needs a column text, transcript or sentence"),
    ("text,Label,label\na,1,2\n", "the header has 'label' twice"),
    ("text,mode\na,train\nb,../x\n", "'../x' is no name of a split"),
    ("text,mode\na,train\nb,\n", "'' is no name of a split"),
    ("text,label\na,good\nb,nan\nc,3\n", "row 4 of label is a number, others"),
    ("text,emotion\na,joy\nb,3\n", "row 3 of emotion is a number, others are names"),
    ("text,audio_path\na,../x.npy\n", "must be an .npy file below"),
    ("text,audio_path\na,/etc/passwd\n", "must be an .npy file below"),
    ("text,audio_path\na,none.npy\n", "no such file: .*none.npy"),
    ("text,audio_path\na,objects.npy\n", "objects.npy: it holds Python objects"),
    ("text,audio_path\na,deep.npy\n", r"shape \(1, 1, 1\) must be"),
  ],
)
def test_what_does_not_fit_is_one_line(tmp_path, content, message):
  np.save(tmp_path / "objects.npy", np.array([{}], object))
  np.save(tmp_path / "deep.npy", np.ones((1, 1, 1)))
  with pytest.raises(UserError, match=message):
    read(write(tmp_path, content), bare_text=True)


def test_empty_lines_and_any_case_of_splits_and_quoted_headers_are_read(tmp_path):
  content = '"text","label","notes, old"\nhi,1,x\n\noh,-1,y\n\n'
  corpus = read(write(tmp_path, content), bare_text=True)
  assert corpus.splits["train"].raw_text.tolist() == ["hi", "oh"]
  content = "text,mode\nhi,Train\noh,Dev\nah,TEST\n"
  corpus = read(write(tmp_path, content), bare_text=True)
  assert list(corpus.splits) == ["train", "valid", "test"]


def test_bytes_that_are_no_text_are_refused(tmp_path):
  path = tmp_path / "c.csv"
  path.write_bytes(b"text\n\xff\xfe\n")
  with pytest.raises(UserError, match="not a readable csv file"):
    transcripts.load(path)
  assert not transcripts.is_transcript(tmp_path / "none.csv")


def test_transcripts_alone_can_be_checked_and_described(tmp_path, capsys):
  path = write(tmp_path, "text,emotion\nhi there,joy\noh,\n")
  assert main(["check", str(path)]) == 0
  assert "1 samples of train have no label of emotion" in capsys.readouterr().out
  assert main(["describe", str(path)]) == 0
  assert "classes: joy" in capsys.readouterr().out


def test_transcripts_without_features_say_how_to_make_some(tmp_path):
  with pytest.raises(UserError, match="transcripts without features"):
    read(write(tmp_path, "text,label\nhi,1\n"))
