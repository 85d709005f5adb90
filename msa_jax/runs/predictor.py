"""Predictions of a trained run for arrays: `msa_jax.Predictor`."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from msa_jax.data.transforms import dialogues
from msa_jax.errors import UserError
from msa_jax.runs import prepare
from msa_jax.runs.open import open_run
from msa_jax.runs.prediction_files import mean_prediction
from msa_jax.training import feed as feed_lib
from msa_jax.typing import Corpus, Routing, task_name

_SPLIT = "predict"
_SMALL = (1, 8)  # batch sizes below the run's own


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a run says of n samples, mean over its seeds; of one sample without axis n.

  Attributes:
    tasks: task -> the label [n] (regression), probabilities of the classes [n c], or
      of a yes to each question [n c]. `prediction["sentiment"]` is short for it.
    classes: task -> names of the classes or questions; none for a regression.
    routing: gate -> its `Routing` [n e].
    has_content: [n] bool; False = nothing of the sample is there, and the prediction is
      the training prior.
  """

  tasks: Mapping[str, Any]
  classes: Mapping[str, tuple[str, ...]]
  routing: Mapping[str, Routing]
  has_content: Any

  def __getitem__(self, task: str) -> Any:
    return self.tasks[task]


class Predictor:
  """Predicts with a trained run, loaded once; replays what its corpus went through.

  >>> predictor = msa_jax.Predictor("runs/a")
  >>> predictor(text=x, audio=a)["sentiment"]  # x [n t d], a [n t d] -> [n]

  Programs are compiled at the first call, one for each of three batch sizes.
  """

  def __init__(self, workdir: str | os.PathLike):
    """Opens the run in a folder.

    Raises:
      UserError: no such run, or one that has not finished.
    """
    self._run = open_run(workdir)
    config = self._run.config
    about = self._run.directory.read_json("data.json")
    self._steps = about.get("raw_steps", config.corpus_spec.lengths)
    self._predictors = {
      size: feed_lib.Predictor(self._run.recipe, size)
      for size in {*_SMALL, config.train.eval_batch_size}
    }

  @property
  def modalities(self) -> tuple[str, ...]:
    """Names of the modalities that the run knows."""
    return self._run.config.corpus_spec.modalities

  def __call__(
    self,
    *,
    lengths: Mapping[str, Any] | None = None,
    groups: Sequence[str] | None = None,
    **arrays: Any,
  ) -> Prediction:
    """Predicts samples; modalities that are not given are missing.

    Args:
      lengths: modality -> real steps [n], or of the one sample; absent = up to the last
        step that is not all zero.
      groups: [n] dialogue or video of each sample, for runs whose samples are
        dialogues.
      **arrays: modality -> features [n t d], or a list of n arrays [t d]. Two axes are
        one sample [t d], or [n d] where the run's corpus had one step per sample. A run
        that encodes transcripts takes `text` as a string or a list of them.

    Raises:
      UserError: a modality that the run does not know, or shapes that do not fit.
    """
    corpus, alone = self._corpus(arrays, lengths or {}, groups)
    config = self._run.config
    ids = corpus.splits[_SPLIT].ids
    made = prepare.reload(config, self._run.pipeline, corpus=corpus, own=False)
    split = made.splits[_SPLIT]
    spec = config.corpus_spec
    feed = feed_lib.make_feed(split, made.tasks, dict(spec.lengths), budget_bytes=0)
    predictor = self._predictors[self._batch_size(len(split))]
    found = [predictor(*chosen, feed) for chosen in self._run.selected]
    # Dialogues come one after the other; what was given has an order of its own.
    place = {name: row for row, name in enumerate(dialogues.utterances(split).ids)}
    rows: Any = np.array([place[name] for name in ids])
    rows = rows[0] if alone else rows
    tasks = {name: spec.tasks[task_name(name)] for name in found[0].outputs}
    return Prediction(
      tasks={
        name: mean_prediction(task, [each.outputs[name] for each in found])[rows]
        for name, task in tasks.items()
      },
      classes={name: task.classes for name, task in tasks.items() if task.classes},
      routing={
        gate: _mean_routing([each.routing[gate] for each in found], rows)
        for gate in found[0].routing
      },
      has_content=found[0].content[rows],
    )

  def _batch_size(self, n: int) -> int:
    largest = max(self._predictors)
    return min((size for size in self._predictors if size >= n), default=largest)

  def _corpus(
    self, arrays: Mapping[str, Any], lengths: Mapping[str, Any], groups: Any
  ) -> tuple[Corpus, bool]:
    """What was given as a corpus, and whether it was one sample without an axis n."""
    for what, names in (("modality", arrays), ("lengths of", lengths)):
      for name in names:
        if name not in self.modalities:
          raise UserError(
            f"{what} {name!r}: the run knows {', '.join(self.modalities)}"
          )
    if not arrays:
      raise UserError(f"give one modality at least of {', '.join(self.modalities)}")
    arrays, raw_text, alone = dict(arrays), None, set()
    if _is_text(arrays.get("text")):
      raw_text = arrays.pop("text")
      alone.add(isinstance(raw_text, str))
      raw_text = [raw_text] if isinstance(raw_text, str) else list(raw_text)
      if not self._run.config.text.is_encoded:
        raise UserError("text: the run was trained on features, not on transcripts")
    for name, value in arrays.items():
      one = self._is_one(name, value)
      alone.add(one)
      if one:
        value = np.asarray(value)
        arrays[name] = value.reshape(1, -1, value.shape[-1])
    if len(alone) > 1:
      raise UserError(
        "some modalities are one sample and others a batch; a batch is [n, steps,"
        " width], or a list of [steps, width]"
      )
    corpus = Corpus.from_arrays(
      predict=arrays,
      lengths={name: np.reshape(value, -1) for name, value in lengths.items()},
      groups=groups,
      raw_text=raw_text,
    )
    return corpus, alone.pop()

  def _is_one(self, name: str, value: Any) -> bool:
    if isinstance(value, list | tuple):
      return False
    axes = np.ndim(value)
    return axes == 1 or (axes == 2 and self._steps.get(name, 0) != 1)


def _is_text(value: Any) -> bool:
  if isinstance(value, str):
    return True
  return (
    isinstance(value, list | tuple | np.ndarray)
    and len(value) > 0
    and all(isinstance(entry, str) for entry in value)
  )


def _mean_routing(found: Sequence[Routing], rows: Any) -> Routing:
  def mean(values: Sequence[Any]) -> Any:
    return np.mean(np.stack(values), axis=0)[rows]

  return Routing(
    probs=mean([each.probs for each in found]),
    combine=mean([each.combine for each in found]),
    logits=mean([each.logits for each in found]),
    experts=found[0].experts,
  )
