"""Missing-modality protocols: what is absent, as data, the same for every model.

A pattern says how content goes missing and how much; written out it is what the
options `config.missing.train`, `config.missing.eval` and the flag `--missing` take:

  none           nothing is missing
  text+audio     only these modalities are there (fixed missing; MoMKE, IMDer)
  conditions     each sample has one of all non-empty sets of its modalities, at random
  dropout:R      each modality is missing with probability R, independently
  random:R       a share R of all (sample, modality) entries is missing (GCNet)
  batches:R      groups of samples lack one or two of three modalities (IMDer, DiCMoR)
  samples:R      a share R of the samples lacks its text (H-GEM, one reading)
  tokens:R       each word piece is lost with probability R, before the text's encoder
                 reads it (H-GEM's "text missing")
  frames:R       the same, and each step of every other modality
  features:R     each row of the text's features is lost with probability R, after the
                 encoder has read the whole transcript

The last three are stepwise, and spare what stands for no word ([CLS], [SEP]). A third
part of their names says how the text loses a step:

  hide           (default of tokens, frames) nobody attends to the piece
  unk            [UNK] stands in its place
  features       (frames) its row of features is lost, as of `features:R`
  ends           as `features`, but first and last step are spared whatever they are:
                 what `frames` and `tokens` meant in earlier versions (TFR-Net in MMSA)

Rows of features lost after encoding are not lost words: their neighbours were computed
from them. `missing.text` knows which corpora can do which.

`dropout`, `random`, `conditions`, `batches` and `samples` leave every sample at least
one of its modalities. The masks of a split depend on the samples' ids, the protocol,
the rate and a seed, on nothing else: not on batches, the order of the samples or a
global generator. They are nested: what is missing at one rate is missing at every
higher one (but for `batches`), and whichever way the text loses it, so that curves are
paired. Steps are those of the file, before alignment, so that models which read the
same file in different ways lose the same frames.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from msa_jax.errors import UserError
from msa_jax.typing import modality_order

# Protocols with a rate: the rates of their grid.
RATES: Mapping[str, tuple[float, ...]] = {
  "dropout": tuple(step / 10 for step in range(10)),
  "random": tuple(step / 10 for step in range(8)),
  "batches": tuple(step / 10 for step in range(8)),
  "samples": tuple(step / 10 for step in range(10)),
  "tokens": tuple(step / 10 for step in range(10)),
  "frames": tuple(step / 10 for step in range(10)),
  "features": tuple(step / 10 for step in range(10)),
}
# Stepwise protocols: the ways in which their text loses a step, the default first.
WAYS: Mapping[str, tuple[str, ...]] = {
  "tokens": ("hide", "unk"),
  "frames": ("hide", "unk", "features", "ends"),
  "features": ("features", "ends"),
}
_NEED_TEXT = ("samples", "tokens", "features")
_HOW = "none, modalities joined by + (text+audio), conditions, or one of " + ", ".join(
  f"{name}:RATE" for name in RATES
)


@dataclasses.dataclass(frozen=True)
class Pattern:
  """One way in which content is missing; see the module's table.

  Attributes:
    protocol: `none`, `only`, `conditions` or a key of `RATES`.
    rate: of the protocols that have one.
    visible: modalities that stay, of `only`.
    way: how the text loses a step, one of `WAYS[protocol]`; "" where there are none.
  """

  protocol: str
  rate: float = 0.0
  visible: tuple[str, ...] = ()
  way: str = ""

  @property
  def stepwise(self) -> bool:
    """Whether steps lose their content, rather than samples their modalities."""
    return self.protocol in WAYS

  def __str__(self) -> str:
    if self.protocol == "only":
      return "+".join(self.visible)
    if self.protocol not in RATES:
      return self.protocol
    default = self.way == next(iter(WAYS.get(self.protocol, ("",))))
    return f"{self.protocol}:{self.rate:g}" + ("" if default else f":{self.way}")


NONE = Pattern("none")


def parse(
  text: str, modalities: Sequence[str] | None = None, option: str = ""
) -> Pattern:
  """Reads a pattern.

  Args:
    text: e.g. `random:0.3`.
    modalities: those of the corpus; None = not known yet, names are not checked.
    option: where it was written, which messages begin with.

  Raises:
    UserError: not a pattern, a rate out of range, or modalities the corpus lacks.
  """
  try:
    return _pattern(text, modalities)
  except UserError as error:
    raise UserError(f"{option}{error}") from None


def _pattern(text: str, modalities: Sequence[str] | None) -> Pattern:
  name, colon, number = text.strip().partition(":")
  if name in RATES:
    _check_modalities(text, name, modalities)
    number, colon, way = number.partition(":")
    ways = WAYS.get(name, ("",))
    if (colon and not way) or (way or ways[0]) not in ways:
      choices = f"may end in {', '.join(f':{way}' for way in ways)}"
      raise UserError(
        f"missing pattern {text!r}: {name}:RATE"
        f" {choices if name in WAYS else 'has no third part'}."
      )
    return Pattern(name, _rate(text, name, number), way=way or ways[0])
  if colon or not name:
    raise UserError(f"missing pattern {text!r} must be {_HOW}.")
  if name in ("none", "conditions"):
    return Pattern(name)
  visible = tuple(name.split("+"))
  known = modality_order(visible if modalities is None else modalities)
  if not set(visible) <= set(known) or len(set(visible)) < len(visible):
    raise UserError(
      f"missing pattern {text!r} must be {_HOW}; the corpus has {', '.join(known)}."
    )
  return Pattern("only", visible=modality_order(visible))


def _check_modalities(text, name, modalities) -> None:
  if modalities is None:
    return
  if name in _NEED_TEXT and "text" not in modalities:
    raise UserError(
      f"missing pattern {text!r} takes text away; the corpus has"
      f" {', '.join(modalities)}."
    )
  if name == "batches" and len(modalities) != 3:
    raise UserError(
      f"missing pattern {text!r} has tables for three modalities; the corpus has"
      f" {', '.join(modalities)}."
    )


def _rate(text: str, name: str, number: str) -> float:
  try:
    rate = float(number)
  except ValueError:
    rate = -1.0
  if not 0.0 <= rate <= 1.0:
    raise UserError(f"missing pattern {text!r}: {name}:RATE needs a rate in [0, 1].")
  if name == "batches" and not any(abs(rate - known) < 1e-9 for known in RATES[name]):
    raise UserError(
      f"missing pattern {text!r}: the tables of batches have rates"
      f" {', '.join(f'{known:g}' for known in RATES[name])}."
    )
  return rate


def conditions(modalities: Sequence[str]) -> tuple[tuple[str, ...], ...]:
  """All non-empty sets of modalities, small ones first: seven for three of them."""
  order = modality_order(modalities)
  sizes = range(1, len(order) + 1)
  return tuple(
    chosen for size in sizes for chosen in itertools.combinations(order, size)
  )


def grids(text: str, modalities: Sequence[str]) -> dict[str, tuple[Pattern, ...]]:
  """Reads what the flag `--missing` says: names of grids, or single patterns.

  Args:
    text: comma-separated. `conditions` stands for every fixed condition, a protocol
      without a rate (`tokens`, `tokens:unk`) for all the rates in `RATES`.
    modalities: those that the data have.

  Returns:
    Entry -> its patterns.

  Raises:
    UserError: an entry that is neither, or does not fit the modalities.
  """
  found = {}
  for entry in (part.strip() for part in text.split(",")):
    if entry == "conditions":
      sets = conditions(modalities)
      found[entry] = tuple(Pattern("only", visible=visible) for visible in sets)
    elif (name := entry.partition(":")[0]) in RATES and _is_whole(entry, name):
      end = entry.removeprefix(name)
      found[entry] = tuple(
        parse(f"{name}:{rate}{end}", modalities) for rate in RATES[name]
      )
    else:
      try:
        found[entry] = (parse(entry, modalities),)
      except UserError as error:
        raise UserError(
          f"--missing={text}: {error} Whole grids: conditions, {', '.join(RATES)}."
        ) from None
  return found


def _is_whole(entry: str, name: str) -> bool:
  """Whether an entry names a protocol without a rate."""
  return entry.removeprefix(name) in ("", *(f":{way}" for way in WAYS.get(name, ())))
