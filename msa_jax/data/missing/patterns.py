"""Missing-modality protocols: what is absent, as data, the same for every model.

A pattern says how content goes missing and how much; written out it is what the
options `config.missing.train`, `config.missing.eval` and the flag `--missing` take:

  none           nothing is missing
  text+audio     only these modalities are there (fixed missing; MoMKE, IMDer)
  conditions     each sample has one of all non-empty sets of modalities, at random
  dropout:R      each modality is missing with probability R, independently
  random:R       a share R of all (sample, modality) entries is missing (GCNet)
  batches:R      whole batches lack one or two of three modalities (IMDer, DiCMoR)
  samples:R      a share R of the samples lacks its text (H-GEM, one reading)
  frames:R       each step of each modality loses its content with probability R,
                 but the text's first and last (CLS, SEP) (TFR-Net in MMSA)
  tokens:R       the same for text only (H-GEM's "text missing")

`dropout`, `random`, `conditions`, `batches` and `samples` leave every sample at least
one of its modalities. The masks of a split depend on the samples' ids, the protocol,
the rate and a seed, on nothing else: not on batches (but for `batches`), the order of
the samples or a global generator. They are nested: what is missing at one rate is
missing at every higher one (but for `batches`), so that curves over rates are paired.
Steps are those of the file, before alignment, so that models which read the same file
in different ways lose the same frames.
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
  "frames": tuple(step / 10 for step in range(10)),
  "tokens": tuple(step / 10 for step in range(10)),
}
_STEPWISE = ("frames", "tokens")
_NEED_TEXT = ("samples", "tokens")
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
  """

  protocol: str
  rate: float = 0.0
  visible: tuple[str, ...] = ()

  @property
  def stepwise(self) -> bool:
    """Whether steps lose their content, rather than samples their modalities."""
    return self.protocol in _STEPWISE

  def __str__(self) -> str:
    if self.protocol == "only":
      return "+".join(self.visible)
    return f"{self.protocol}:{self.rate:g}" if self.protocol in RATES else self.protocol


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
    return Pattern(name, _rate(text, name, number))
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
      without a rate for all the rates in `RATES`.
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
    elif entry in RATES:
      found[entry] = tuple(
        parse(f"{entry}:{rate}", modalities) for rate in RATES[entry]
      )
    else:
      try:
        found[entry] = (parse(entry, modalities),)
      except UserError as error:
        raise UserError(
          f"--missing={text}: {error} Whole grids: conditions, {', '.join(RATES)}."
        ) from None
  return found
