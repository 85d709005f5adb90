"""The contract of a system, one function for each of its rules."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from msa_jax.config.experiment import Experiment
from msa_jax.models.outputs import output_spec
from msa_jax.models.system import System
from msa_jax.step import compose
from msa_jax.step.recipe import Recipe
from msa_jax.testing.data import ROWS, STEPS, random_batch
from msa_jax.typing import Batch, Modality, Params, task_name


class Checked(NamedTuple):
  """A system, ready to be checked.

  Attributes:
    system: the system.
    config: an experiment of it, resolved.
    model: its network.
    recipe: of the last stage of its training, compiled.
    batch: labelled samples.
    params, collections: of a fresh state.
    unused: beginnings of the paths of parameters that need not learn.
  """

  system: System
  config: Experiment
  model: nn.Module
  recipe: Recipe
  batch: Batch
  params: Any
  collections: Any
  unused: tuple[str, ...]

  def predict(self, batch: Batch) -> Any:
    """Predictions and routing for a batch."""
    output = self.recipe.predict(self.params, self.collections, batch)
    routing = {
      name: (each.probs, each.combine) for name, each in output.routing.items()
    }
    return {"predictions": dict(output.predictions), "routing": routing}


def compiled(config: Experiment, stage: int) -> Recipe:
  """The recipe of a stage of the training, its functions compiled."""
  recipe = compose.build(config, stage)
  return recipe._replace(
    init=jax.jit(recipe.init),
    step=jax.jit(recipe.step),
    predict=jax.jit(recipe.predict),
  )


def _require(fits: bool, rule: str, found: str) -> None:
  if not fits:
    raise AssertionError(f"{rule}: {found}")


def _compare(ours: Any, theirs: Any, rule: str, tolerance: float = 0.0) -> None:
  """Raises AssertionError naming the leaf that differs most."""
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
  )
  for (path, one), other in pairs:
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    name = jax.tree_util.keystr(path)
    same_nans = bool((np.isnan(one) == np.isnan(other)).all())
    worst = float(np.nanmax(np.abs(one - other), initial=0.0))
    limit = tolerance * (1.0 + float(np.nanmax(np.abs(other), initial=0.0)))
    _require(same_nans and worst <= limit, rule, f"{name} differs by {worst:.3g}")


def check_predictions(checked: Checked) -> None:
  """One prediction for a task of the corpus at least, of its shape, finite."""
  found = checked.predict(checked.batch)["predictions"]
  rule = "predictions are of the corpus's tasks and of their shapes"
  tasks = checked.config.corpus_spec.tasks
  _require(bool(found), rule, "there is none")
  for name, value in found.items():
    _require(task_name(name) in tasks, rule, f"{name!r}, the tasks are {sorted(tasks)}")
    made = output_spec(name, tasks[task_name(name)])
    rows = checked.batch.available.shape[:-1]
    units = {
      "regression": (),
      "classes": (made.num_outputs,),
      "binary": (made.num_outputs // 2, 2),
    }
    shape = (*rows, *units[made.kind])
    _require(value.shape == shape, rule, f"{name} has shape {value.shape}, not {shape}")
    finite = bool(np.isfinite(np.asarray(value)).all())
    _require(finite, "predictions are finite", name)


def check_influence(checked: Checked) -> None:
  """Some modality changes the prediction of every sample that has it."""
  plain, changed = checked.predict(checked.batch), False
  for name in checked.batch.order:
    modality = checked.batch.modalities[name]
    features = jnp.where(modality.mask[..., None], 1.0 - modality.features, 0.0)
    other = checked.predict(_with_modality(checked.batch, name, features=features))
    changed |= any(
      bool((np.asarray(other["predictions"][key]) != np.asarray(value)).any())
      for key, value in plain["predictions"].items()
    )
  _require(changed, "predictions depend on the features", "they depend on no modality")


def check_absent_content(checked: Checked) -> None:
  """What a missing modality, a lost step or padding holds has exactly no influence."""
  batch, order = checked.batch, checked.batch.order
  keep = np.ones((len(batch.index), len(order)), bool)
  for column in range(len(order)):
    keep[column, column] = len(order) == 1  # a row without each of the modalities
  keep[len(order) % len(keep)] = False  # and one without any
  between = [1] * (batch.available.ndim - 2)
  available = batch.available & keep.reshape(len(keep), *between, len(order))
  batch = batch.replace(available=available)
  noisy, plain = batch, batch
  for column, name in enumerate(order):
    modality = batch.modalities[name]
    lost = modality.mask & (np.arange(modality.mask.shape[1]) == 1)[None]
    gone = ~np.asarray(modality.mask) | ~keep[:, column, None]  # [b t]
    plain = _with_modality(plain, name, lost=lost)
    noisy = _with_modality(noisy, name, **_noise(modality, gone, lost, column))
  rule = "absent content (missing modality, lost step, padding) has no influence"
  _compare(checked.predict(plain), checked.predict(noisy), rule)


def _noise(modality: Modality, gone: Any, lost: Any, seed: int) -> dict[str, Any]:
  """Other contents at steps that are gone, NaN and infinities included."""
  random = np.random.default_rng(seed)
  features = random.normal(size=modality.features.shape).astype("f") * 1e3
  features[:, ::2], features[:, 1::4] = np.nan, np.inf
  return {
    "features": jnp.where((gone | lost)[..., None], features, modality.features),
    "lost": lost,
    "ids": {
      key: jnp.where(gone, random.integers(0, 9, gone.shape), value).astype(jnp.int32)
      for key, value in modality.ids.items()
    },
  }


def _with_modality(batch: Batch, name: str, **fields: Any) -> Batch:
  changed = batch.modalities[name].replace(**fields)
  return batch.replace(modalities={**batch.modalities, name: changed})


def check_padding(checked: Checked) -> None:
  """More padding changes nothing."""
  longer = checked.batch

  def pad(leaf: Any) -> Any:
    return jnp.pad(leaf, [(0, 0), (0, 3), *[(0, 0)] * (leaf.ndim - 2)])

  modalities = {
    name: jax.tree.map(pad, each) for name, each in longer.modalities.items()
  }
  longer = longer.replace(modalities=modalities)
  ours, theirs = checked.predict(checked.batch), None
  if longer.available.ndim == 3:  # utterances are steps
    labels = jax.tree.map(pad, dict(longer.labels))
    longer = longer.replace(available=pad(longer.available), labels=labels)
    theirs = jax.tree.map(lambda leaf: leaf[:, :STEPS], checked.predict(longer))
    real = jnp.any(checked.batch.available, axis=-1)

    def shown(leaf: Any) -> Any:
      return jnp.where(real.reshape(*real.shape, *[1] * (leaf.ndim - 2)), leaf, 0.0)

    ours, theirs = jax.tree.map(shown, (ours, theirs))
  else:
    theirs = checked.predict(longer)
  _compare(ours, theirs, "padding changes no prediction", 1e-4)


def check_labels(checked: Checked) -> None:
  """Predictions look neither at labels nor at the place in the split."""
  batch = checked.batch
  other = random_batch(checked.config.corpus_spec, seed=9)
  other = batch.replace(labels=other.labels, index=batch.index[::-1] + 3)
  rule = "predictions do not depend on labels or on batch.index"
  _compare(checked.predict(batch), checked.predict(other), rule)


def check_rows(checked: Checked) -> None:
  """A sample's prediction does not depend on the other rows, filler or not."""
  batch, half = checked.batch, ROWS // 2

  def part(leaf: Any) -> Any:
    rows = jnp.arange(len(leaf)).reshape(-1, *[1] * (leaf.ndim - 1)) < half
    return jnp.where(rows, leaf, jnp.zeros((), leaf.dtype))

  alone = jax.tree.map(part, batch)
  ours, theirs = (
    jax.tree.map(lambda leaf: leaf[:half], checked.predict(each))
    for each in (batch, alone)
  )
  _compare(ours, theirs, "a prediction does not depend on the other rows", 1e-4)


def check_filler_rows(checked: Checked) -> None:
  """Filler rows change neither the update nor the auxiliary losses."""
  batch, half = checked.batch, ROWS // 2
  filled = batch.replace(sample_mask=jnp.arange(ROWS) < half)
  other = random_batch(checked.config.corpus_spec, seed=5)

  def mixed(ours: Any, theirs: Any) -> Any:
    rows = jnp.arange(ROWS).reshape(-1, *[1] * (ours.ndim - 1)) < half
    return jnp.where(rows, ours, theirs)

  noisy = jax.tree.map(mixed, batch, other).replace(sample_mask=filled.sample_mask)
  state = checked.recipe.init(0)
  ours, theirs = (checked.recipe.step(state, each, 0) for each in (filled, noisy))
  rule = "filler rows (sample_mask False) do not change the update"
  _compare(ours[0].params, theirs[0].params, rule)
  few = jax.tree.map(lambda leaf: leaf[:half], batch)
  rule = "auxiliary losses are means over the real rows"
  _compare(_auxiliary(checked, few), _auxiliary(checked, filled), rule, 1e-4)


def _auxiliary(checked: Checked, batch: Batch) -> Mapping[str, Any]:
  output = checked.recipe.predict(checked.params, checked.collections, batch)
  progress = jnp.asarray(0.5, jnp.float32)
  return dict(checked.system.auxiliary(checked.model, output, batch, progress))


def _by_path(params: Params) -> dict[str, Any]:
  """Arrays on the host by their paths, `encoder/kernel`."""
  return traverse_util.flatten_dict(jax.device_get(params), sep="/")


def check_gradients(checked: Checked) -> None:
  """Every parameter learns in some stage, and no update is infinite or NaN."""
  still: set[str] = set()
  moved: set[str] = set()
  stages = compose.stages_of(checked.config)
  for stage in range(len(stages)):
    last = stage == len(stages) - 1
    recipe = checked.recipe if last else compiled(checked.config, stage)
    first = state = recipe.init(0)
    for step in range(3 * max(1, len(stages[stage].turns))):
      batch = random_batch(checked.config.corpus_spec, seed=20 + step)
      state, metrics = recipe.step(state, batch, 0)
      finite = bool(np.isfinite(np.asarray(metrics["loss"])))
      _require(finite, "the loss is finite", f"{metrics['loss']} in step {step}")
      if step % 3 == 2 and recipe.end_epoch is not None:
        state = recipe.end_epoch(state)
    before, after = (_by_path(each.params) for each in (first, state))
    for path, value in after.items():
      finite = bool(np.isfinite(value).all())
      _require(finite, "updates are finite", f"{path}, stage {stages[stage].name}")
      (still if (value == before[path]).all() else moved).add(path)
  idle = sorted(path for path in still - moved if not path.startswith(checked.unused))
  rule = "every parameter has a gradient (name exceptions in unused=)"
  _require(not idle, rule, f"none in three steps: {', '.join(idle[:5])}")


def check_purity(checked: Checked) -> None:
  """A step repeats exactly, also from a state that was stored, as of a resumed run."""
  state, _ = checked.recipe.step(checked.recipe.init(3), checked.batch, 3)
  again = checked.recipe.step(state, checked.batch, 3)[0]
  stored = jax.tree.map(jnp.asarray, jax.device_get(state))
  resumed = checked.recipe.step(stored, checked.batch, 3)[0]
  rule = "a step is a function of state, batch and seed alone (resume)"
  _compare(again, resumed, rule)
  _require(int(again.step) == 2, "state.step counts the updates", str(int(again.step)))


def check_vmap(checked: Checked) -> None:
  """Seeds trained side by side by `vmap` are what they are alone."""
  seeds = jnp.arange(2)
  together = jax.vmap(lambda seed: _one_step(checked, seed))(seeds)
  for seed in range(2):
    one = jax.tree.map(functools.partial(lambda seed, leaf: leaf[seed], seed), together)
    rule = "vmap over seeds gives what each seed gives alone"
    _compare(one, _one_step(checked, seeds[seed]), rule, 1e-4)


def _one_step(checked: Checked, seed: Any) -> Any:
  recipe = checked.recipe
  return recipe.step(recipe.init(seed), checked.batch, seed)[0].params


CHECKS: tuple[Callable[[Checked], None], ...] = (
  check_predictions,
  check_influence,
  check_absent_content,
  check_padding,
  check_labels,
  check_rows,
  check_filler_rows,
  check_gradients,
  check_purity,
  check_vmap,
)
