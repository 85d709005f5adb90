"""Search spaces of the study `tune`: options, and the values that a trial may have.

  optim.learning_rate=1e-4..1e-2:log    numbers between, evenly in their logarithm
  model.dropout=0..0.5                  numbers between
  model.num_layers=1..4                 whole numbers, where the option is one
  optim.batch_size=16..64:16            in steps
  optim.name=adam,adamw                 one of these
  optim.ema_decay=0.98                  always this

What every system is searched for is here (`shared`); what a system adds, it says itself
(`System.search_space`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msa_jax import models
from msa_jax.config.experiment import Experiment
from msa_jax.errors import UserError
from msa_jax.models.system import one_stage
from msa_jax.studies import sweep
from msa_jax.studies.changes import current, parse_values

_FORMS = (
  "option=low..high, with :log or :step behind it if wanted, or option=value,value"
)
_DIGITS = 4  # of a number that is tried: more would only be harder to read


class Dimension(NamedTuple):
  """An option, and the values that a trial may have.

  Attributes:
    path: dotted key of the option.
    text: as `--space` has it, without the key.
    choices: values to choose from; () = a range.
    low, high: ends of the range, both of which may be tried.
    log: whether the range is even in the logarithm.
    step: between values; 0 = any, or 1 for whole numbers.
    whole: whether they are whole numbers.
  """

  path: str
  text: str
  choices: tuple[Any, ...] = ()
  low: float | int = 0.0
  high: float | int = 0.0
  log: bool = False
  step: float | int = 0.0
  whole: bool = False

  @property
  def is_fixed(self) -> bool:
    """Whether there is nothing to choose."""
    return len(self.choices) == 1

  def holds(self, value: Any) -> bool:
    """Whether a trial may have a value."""
    if self.choices:
      return value in self.choices
    inside = self.low <= value <= self.high
    steps = (value - self.low) / self.step if self.step else 0.0
    return inside and abs(steps - round(steps)) < 1e-9

  def rounded(self, value: float) -> float | int:
    """A value of the range with few digits, still within."""
    if self.whole:
      return round(value)
    return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


def shared(config: Experiment) -> dict[str, str]:
  """What every system is searched for: rates around the config's own, weight decay
  where it is decoupled, a running mean of the parameters."""
  rate = config.optim.learning_rate
  found = {"optim.learning_rate": f"{rate / 5:.3g}..{rate * 5:.3g}:log"}
  if config.optim.name == "adamw":
    found["optim.weight_decay"] = "1e-3..0.5:log"
  if models.get(config.system).stages is one_stage:  # it averages one training
    found["optim.ema_decay"] = "0,0.98,0.995"
  if config.text.is_tuned:
    rate = config.text.learning_rate
    found["text.learning_rate"] = f"{rate / 3:.3g}..{rate * 3:.3g}:log"
  return found


def space(config: Experiment, entries: Sequence[str]) -> dict[str, Dimension]:
  """The dimensions to search, by option.

  Args:
    config: unresolved.
    entries: `option=values` each, in place of what the default space says of the option
      or beside it; `none` = without the default space.

  Raises:
    UserError: no such option, one that trials may not differ in, values that the option
      cannot have, or nothing to search.
  """
  texts: dict[str, str] = {}
  if "none" not in entries:
    texts = {**shared(config), **models.get(config.system).search_space}
  given: set[str] = set()
  for entry in entries:
    if entry == "none":
      continue
    path, equals, text = entry.partition("=")
    path = path.strip().removeprefix("config.")
    if not equals or not text.strip() or path in given:
      raise UserError(f"--space={entry}: give {_FORMS}, once for each option, or none.")
    sweep.refuse_fixed(path, f"--space={entry}")
    given.add(path)
    texts[path] = text.strip()
  found = {}
  for path, text in texts.items():
    try:
      found[path] = _dimension(config, path, text)
    except UserError as error:
      raise UserError(f"--space={path}={text}: {error}") from None
  if all(dimension.is_fixed for dimension in found.values()):
    raise UserError(f"tune has nothing to search: give --space={_FORMS}.")
  return found


def fixed(dimensions: Mapping[str, Dimension]) -> dict[str, Any]:
  """The options that have one value in every trial."""
  return {
    path: dimension.choices[0]
    for path, dimension in dimensions.items()
    if dimension.is_fixed
  }


def _dimension(config: Experiment, path: str, text: str) -> Dimension:
  low, dots, rest = text.partition("..")
  if not dots:
    return Dimension(path, text, parse_values(config, path, text))
  present = current(config, path)
  if isinstance(present, bool) or not isinstance(present, int | float):
    raise UserError(
      f"a range is of numbers, and {path} is {present!r}; give value,value."
    )
  whole = isinstance(present, int)
  high, colon, kind = rest.partition(":")
  if colon and not kind:
    raise UserError(f"give {_FORMS}.")
  log = kind == "log"
  ends = [_number(each, whole) for each in (low, high)]
  step = 0.0 if log or not kind else _number(kind, whole)
  if not ends[0] < ends[1]:
    raise UserError(f"the range must rise, {ends[0]} is not below {ends[1]}.")
  if log and ends[0] <= 0:
    raise UserError(f"the logarithm needs a range above 0, not from {ends[0]}.")
  if kind and not log and not 0 < step <= ends[1] - ends[0]:
    raise UserError(f"the step {step} must be above 0 and within the range.")
  return Dimension(path, text, (), ends[0], ends[1], log, step, whole)


def _number(text: str, whole: bool) -> float | int:
  try:
    value = int(text) if whole else float(text)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    kind = "a whole number" if whole else "a finite number"
    raise UserError(f"{text.strip()!r} must be {kind}; give {_FORMS}.")
  return value
