"""Several corpora as one: every sample keeps the labels it has.

MOSI has sentiment labels, MOSEI also emotions: trained together, each task learns from
the samples that own its label, and a balanced order of samples keeps the larger corpus
from drowning the smaller one (`batches.epoch_order`).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from msa_jax.errors import UserError
from msa_jax.names import TEXT_CONTEXT, TEXT_STEPS, TEXT_TOKENS, TEXT_WORDS
from msa_jax.typing import Corpus, Sequences, Split, Task, modality_order

SOURCE = "source"  # extras: number of the corpus that a sample comes from


def join(corpora: Sequence[Corpus], evaluation: bool = False) -> Corpus:
  """Adds the training splits of further corpora to those of the first.

  Args:
    corpora: the first gives the name and the meaning; at least one.
    evaluation: whether validation and test join too; False = those of the first.

  Returns:
    A corpus with the tasks and modalities of all. Rows stand in the order of
    `corpora`; `extras["source"]` says which one a row is from. A modality or label
    that a corpus lacks is absent for its rows. Ids and groups that two corpora share
    get the corpus's number in front (`1:video$_$3`).

  Raises:
    UserError: a modality of two widths, or a task of two meanings.
  """
  if len(corpora) == 1:
    return corpora[0]
  tasks = _tasks(corpora)
  splits = {}
  for name, split in corpora[0].splits.items():
    parts = [corpus.splits.get(name) for corpus in corpora]
    if name != "train" and not evaluation:
      parts = [split] + [None] * (len(corpora) - 1)
    splits[name] = _join(parts, _widths(corpora), tasks, name)
  joined = [corpus.name for corpus in corpora]
  notes = {**corpora[0].notes, "joined": [dict(c.notes) for c in corpora[1:]]}
  if len({corpus.notes.get(TEXT_STEPS) for corpus in corpora}) > 1:
    notes.pop(TEXT_STEPS, None)
  return Corpus("+".join(joined), splits, tasks, notes)


def source_sizes(split: Split) -> tuple[int, ...]:
  """Number of samples of each corpus in a joined split; () for one corpus."""
  if SOURCE not in split.extras:
    return ()
  return tuple(int(count) for count in np.bincount(split.extras[SOURCE]))


def epoch_size(size: int, sources: Sequence[int] = ()) -> int:
  """Rows of an epoch (`batches.epoch_order`) of so many samples: with several
  sources, as many of each as the largest has."""
  return len(sources) * max(sources) if len(sources) > 1 else size


def _tasks(corpora: Sequence[Corpus]) -> dict[str, Task]:
  tasks: dict[str, Task] = {}
  for corpus in corpora:
    for name, task in corpus.tasks.items():
      if tasks.setdefault(name, task) != task:
        raise UserError(
          f"joint corpora: {name!r} is {_meaning(tasks[name])} in {corpora[0].name!r}"
          f" and {_meaning(task)} in {corpus.name!r}; it must be the same in both"
        )
  return tasks


def _meaning(task: Task) -> str:
  if task.kind == "regression":
    return f"a number in [{task.low:g}, {task.high:g}]"
  return f"{task.kind} of {', '.join(task.classes)}"


def _widths(corpora: Sequence[Corpus]) -> dict[str, int]:
  widths: dict[str, int] = {}
  for corpus in corpora:
    for name, sequences in corpus.splits["train"].modalities.items():
      width = sequences.features.shape[-1]
      if widths.setdefault(name, width) != width:
        raise UserError(
          f"joint corpora: {name} is {widths[name]} wide in {corpora[0].name!r} and"
          f" {width} in {corpus.name!r}; take the same features, or only the modalities"
          " that agree (config.data.modalities)"
        )
  return widths


def _join(
  parts: Sequence[Split | None],
  widths: dict[str, int],
  tasks: dict[str, Task],
  name: str,
) -> Split:
  present = [(number, part) for number, part in enumerate(parts) if part is not None]
  sizes = [len(part) for _, part in present]
  source = np.repeat([number for number, _ in present], sizes)
  splits = [part for _, part in present]
  modalities = {
    key: _sequences([part.modalities.get(key) for part in splits], sizes, width)
    for key, width in widths.items()
  }
  labels = {
    key: np.concatenate(
      [
        part.labels[key] if key in part.labels else no_labels(task, len(part))
        for part in splits
      ]
    )
    for key, task in tasks.items()
    if any(key in part.labels for part in splits)
  }
  texts = [part.raw_text for part in splits if part.raw_text is not None]
  return Split(
    ids=_distinct([part.ids for part in splits], source),
    modalities=modalities,
    labels=labels,
    raw_text=np.concatenate(texts) if len(texts) == len(splits) else None,
    groups=_distinct([_groups(part, name) for part in splits], source),
    extras={SOURCE: source, **_of_text(splits)},
    available=_available(splits, list(modalities)),
  )


def _of_text(splits: list[Split]) -> dict[str, np.ndarray]:
  """What is known of every step of the text, where all splits know it."""
  found = {}
  for name, padding in ((TEXT_WORDS, -1), (TEXT_TOKENS, 0), (TEXT_CONTEXT, -1)):
    if all(name in split.extras for split in splits):
      steps = max(split.extras[name].shape[1] for split in splits)
      found[name] = np.concatenate(
        [
          np.pad(
            split.extras[name],
            ((0, 0), (0, steps - split.extras[name].shape[1])),
            constant_values=padding,
          )
          for split in splits
        ]
      )
  return found


def concatenate(splits: Sequence[Split], tasks: Mapping[str, Task]) -> Split:
  """Splits of one corpus as one; samples keep their ids, and lack labels they lacked.

  Args:
    splits: of the same modalities and widths, each with its own longest sequence.
    tasks: of the corpus.
  """
  sizes = [len(split) for split in splits]
  first = splits[0].modalities
  labels = {
    name: np.concatenate(
      [
        split.labels[name] if name in split.labels else no_labels(task, len(split))
        for split in splits
      ]
    )
    for name, task in tasks.items()
  }

  def columns(values):
    return None if any(v is None for v in values) else np.concatenate(values)

  return Split(
    ids=np.concatenate([split.ids for split in splits]),
    modalities={
      name: _sequences(
        [split.modalities[name] for split in splits],
        sizes,
        first[name].features.shape[-1],
      )
      for name in first
    },
    labels=labels,
    raw_text=columns([split.raw_text for split in splits]),
    groups=columns([split.groups for split in splits]),
    extras=_extras(splits),
    available=_available(list(splits), list(first)),
  )


def _extras(splits: Sequence[Split]) -> dict[str, np.ndarray]:
  """What all splits know: of every step of the text, and arrays of equal shapes."""
  found = _of_text(list(splits))
  for name, values in splits[0].extras.items():
    others = [split.extras.get(name) for split in splits]
    shapes = {None if other is None else other.shape[1:] for other in others}
    if name not in found and shapes == {values.shape[1:]}:
      found[name] = np.concatenate([split.extras[name] for split in splits])
  return found


def _available(splits: list[Split], names: list[str]) -> np.ndarray | None:
  """What the splits say is missing though it has features; None if none says so.

  Raises:
    UserError: dialogues, whose utterances are not samples.
  """
  if all(split.available is None for split in splits):
    return None
  rows = []
  for split in splits:
    table = np.ones((len(split), len(names)), bool)
    if split.available is not None and split.available.ndim != 2:
      raise UserError("joint corpora: dialogues cannot be joined, only utterances")
    if split.available is not None:
      own = modality_order(split.modalities)
      for column, name in enumerate(modality_order(names)):
        if name in own:
          table[:, column] = split.available[:, own.index(name)]
    rows.append(table)
  return np.concatenate(rows)


def _groups(split: Split, name: str) -> np.ndarray:
  if split.groups is not None:
    return split.groups
  return np.asarray([f"{name}-{row}" for row in range(len(split))], dtype=np.str_)


def _distinct(names: list[np.ndarray], source: np.ndarray) -> np.ndarray:
  """Concatenates; names that occur in two corpora get the corpus's number."""
  whole = np.concatenate([np.asarray(each, dtype=np.str_) for each in names])
  owners: dict[str, set[int]] = {}
  for text, number in zip(whole.tolist(), source.tolist(), strict=True):
    owners.setdefault(text, set()).add(number)
  return np.asarray(
    [
      f"{number}:{text}" if len(owners[text]) > 1 else text
      for text, number in zip(whole.tolist(), source.tolist(), strict=True)
    ],
    dtype=np.str_,
  )


def _sequences(
  parts: list[Sequences | None], sizes: list[int], width: int
) -> Sequences:
  known = [part for part in parts if part is not None]
  steps = max([part.features.shape[1] for part in known], default=1)
  ids = set.intersection(*(set(part.ids) for part in known)) if known else set()
  absent = Sequences(np.zeros((0, steps, width), np.float16), np.zeros(0, np.int32))
  filled = [
    _absent(absent, size, sorted(ids)) if part is None else part
    for part, size in zip(parts, sizes, strict=True)
  ]
  context = {}
  if known and all(part is not None for part in parts):
    context = {
      key: np.concatenate([part.context[key] for part in known])
      for key in known[0].context
    }
  lost = None
  if any(part.lost is not None for part in filled):
    lost = np.concatenate([_steps(_lost(part), steps) for part in filled])
  return Sequences(
    features=np.concatenate([_steps(part.features, steps) for part in filled]),
    lengths=np.concatenate([part.lengths for part in filled]),
    lost=lost,
    ids={
      key: np.concatenate([_steps(part.ids[key], steps) for part in filled])
      for key in sorted(ids)
    },
    context=context,
  )


def _absent(template: Sequences, size: int, ids: list[str]) -> Sequences:
  shape = (size, *template.features.shape[1:])
  return Sequences(
    np.zeros(shape, template.features.dtype),
    np.zeros(size, np.int32),
    ids={key: np.zeros(shape[:2], np.int32) for key in ids},
  )


def _lost(sequences: Sequences) -> np.ndarray:
  shape = sequences.features.shape[:2]
  return np.zeros(shape, bool) if sequences.lost is None else sequences.lost


def _steps(values: np.ndarray, steps: int) -> np.ndarray:
  missing = steps - values.shape[1]
  return np.pad(values, [(0, 0), (0, missing)] + [(0, 0)] * (values.ndim - 2))


def no_labels(task: Task, size: int) -> np.ndarray:
  """Labels [n ...] of samples that have none."""
  if task.kind == "regression":
    return np.full(size, np.nan, np.float32)
  shape = (size, len(task.classes)) if task.kind == "binary" else (size,)
  return np.full(shape, -1, np.int32)
