"""What a search tries next, and which options mattered: Optuna behind two functions.

Sources: tree-structured Parzen estimators, Bergstra et al. 2011; PED-ANOVA, Watanabe et
al. 2023. Both as Optuna has them.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from msa_jax.errors import UserError
from msa_jax.studies.spaces import Dimension

STARTUP_TRIALS = 8  # drawn evenly from the space before anything is learned from them
_REDRAWS = 20  # of values that were tried before


class Outcome(NamedTuple):
  """What came of a trial.

  Attributes:
    values: option -> what it had, of every dimension that is no constant.
    figures: of each seed that was trained, greater is better; () = it could not be
      trained, or has no figure.
    is_whole: whether every seed was trained.
  """

  values: Mapping[str, Any]
  figures: Sequence[float] = ()
  is_whole: bool = False


def library() -> Any:
  """Optuna.

  Raises:
    UserError: it is not installed.
  """
  try:
    found = importlib.import_module("optuna")
  except ImportError:
    raise UserError("tune needs Optuna: pip install 'msa_jax[tune]'") from None
  found.logging.set_verbosity(found.logging.WARNING)
  return found


def propose(
  dimensions: Mapping[str, Dimension],
  outcomes: Sequence[Outcome],
  seed: int,
) -> dict[str, Any] | None:
  """Values for the next trial; the same arguments give the same values.

  Args:
    dimensions: the space.
    outcomes: of all trials before, in order.
    seed: of the draws.

  Returns:
    Option -> value, of every dimension that is no constant; None = all values that were
    drawn have been tried, as happens where a space has few.
  """
  optuna = library()
  searched = {path: each for path, each in dimensions.items() if not each.is_fixed}
  number, tried = len(outcomes), [dict(outcome.values) for outcome in outcomes]
  for draw in range(_REDRAWS):
    (state,) = np.random.SeedSequence([seed, number, draw]).generate_state(1)
    study = _study(optuna, searched, outcomes, int(state))
    trial = study.ask()
    values = {path: _suggested(trial, each) for path, each in searched.items()}
    if values not in tried:
      return values
  return None


def importances(
  dimensions: Mapping[str, Dimension], outcomes: Sequence[Outcome]
) -> dict[str, float]:
  """Share of each option in what separates good trials from all (PED-ANOVA).

  Args:
    dimensions: the space.
    outcomes: of the trials; one that has not trained every seed counts with the mean of
      those it has.

  Returns:
    Option -> share, greatest first; empty where too few trials have a figure.
  """
  optuna = library()
  known = [each._replace(is_whole=True) for each in outcomes if each.figures]
  if len(known) < 4:
    return {}
  study = _study(optuna, dimensions, known, 0)
  evaluator = optuna.importance.PedAnovaImportanceEvaluator()
  try:
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
  except (RuntimeError, ValueError):  # all figures are the same
    return {}
  return {path: float(share) for path, share in found.items() if np.isfinite(share)}


def _study(optuna, dimensions, outcomes: Sequence[Outcome], seed: int) -> Any:
  """A study in memory that knows what came before, within the space."""
  sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
  study = optuna.create_study(direction="maximize", sampler=sampler)
  states = optuna.trial.TrialState
  for outcome in outcomes:
    if not all(dimensions[path].holds(v) for path, v in outcome.values.items()):
      continue  # the config's own values may lie outside
    mean = float(np.mean(outcome.figures)) if outcome.figures else None
    whole = outcome.is_whole and mean is not None
    # A trial without any figure ranks below all that were stopped.
    partial = {} if whole or mean is None else {len(outcome.figures): mean}
    trial = optuna.trial.create_trial(
      state=states.COMPLETE if whole else states.PRUNED,
      value=mean if whole else None,
      params={
        path: _stored(dimensions[path], value) for path, value in outcome.values.items()
      },
      distributions={
        path: _distribution(optuna, dimensions[path]) for path in outcome.values
      },
      intermediate_values=partial,
    )
    study.add_trial(trial)
  return study


def _stored(dimension: Dimension, value: Any) -> Any:
  """A value as Optuna keeps it: of several to choose from, the number."""
  return dimension.choices.index(value) if dimension.choices else value


def _distribution(optuna, dimension: Dimension) -> Any:
  if dimension.choices:
    return optuna.distributions.CategoricalDistribution(range(len(dimension.choices)))
  if dimension.whole:
    return optuna.distributions.IntDistribution(
      int(dimension.low), int(dimension.high), dimension.log, int(dimension.step or 1)
    )
  return optuna.distributions.FloatDistribution(
    dimension.low, dimension.high, dimension.log, dimension.step or None
  )


def _suggested(trial, dimension: Dimension) -> Any:
  path = dimension.path
  if dimension.choices:
    count = range(len(dimension.choices))
    return dimension.choices[trial.suggest_categorical(path, count)]
  ends = (path, dimension.low, dimension.high)
  if dimension.whole:
    step = int(dimension.step or 1)
    return trial.suggest_int(*map(_whole, ends), log=dimension.log, step=step)
  step = dimension.step or None
  value = trial.suggest_float(*ends, log=dimension.log, step=step)
  return dimension.rounded(value)


def _whole(value: Any) -> Any:
  return value if isinstance(value, str) else int(value)
