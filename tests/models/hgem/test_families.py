"""H-GEM with several experts per family, and the temperature's schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hgem as tiny

from msa_jax.models.hgem import system as hgem
from msa_jax.typing import ModelOutput, Routing

# Gates without opinion over all candidates, so that every weight is known.
EVEN = (("gate1.k", 3), ("robust.sigma", 0.0), ("robust.p_slot", 0.0))
EVEN_TWICE = (("gate1.k", 6), *EVEN[1:], ("experts_per_family", 2))


def with_scores(params, gate, change):
  """The parameters with the last layer of a gate's units changed."""
  units = dict(params[gate]["units"]["experts"])
  units["scores"] = change(units["scores"])
  return {**params, gate: {"units": {"experts": units}}}


def zeros(tree):
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


def undecided(params):
  """Zeroes what gates 0 and 1 say."""
  return with_scores(with_scores(params, "gate0", zeros), "gate1", zeros)


def doubled(params, wanted):
  """Parameters of families of two whose experts are all equal to the single ones."""
  result = {name: params[name.removesuffix("_copy_1")] for name in wanted}
  for gate in ("gate0", "gate1"):
    scores = zeros(wanted[gate]["units"]["experts"]["scores"])
    result = with_scores(result, gate, lambda _, new=scores: new)
  return result


def test_a_family_of_equal_experts_is_one_expert():
  one, two = tiny.system(EVEN), tiny.system(EVEN_TWICE)
  params = undecided(one.variables["params"])
  twice = doubled(params, two.variables["params"])
  assert jax.tree.map(jnp.shape, twice) == jax.tree.map(
    jnp.shape, two.variables["params"]
  )
  batch = tiny.batch()
  expected = one.predict({"params": params}, batch)
  output = two.predict({"params": twice}, batch)
  np.testing.assert_allclose(
    output.predictions["sentiment"], expected.predictions["sentiment"], atol=1e-5
  )
  np.testing.assert_allclose(output.losses["den"], expected.losses["den"], rtol=1e-5)
  # Six fusion experts share the weight that three had; of the second sample's
  # modalities audio is missing, and its four other experts share Gate 0.
  np.testing.assert_allclose(output.routing["gate1"].probs, 1 / 6, atol=1e-6)
  np.testing.assert_allclose(
    output.routing["gate0"].probs[1], [0.25, 0.25, 0, 0, 0.25, 0.25], atol=1e-6
  )


def test_experts_of_a_family_are_chosen_one_by_one():
  """Gate 1 keeps two of six; what is not chosen has no influence."""
  two = tiny.system((*EVEN_TWICE, ("gate1.k", 2)))
  batch = tiny.batch()

  # Candidates are sparse, sparse, dense, dense, robust, robust.
  def favour(scores):
    return {**scores, "bias": scores["bias"].at[:, 3:5].set(1.0)}

  params = with_scores(undecided(two.variables["params"]), "gate1", favour)
  output = two.predict({"params": params}, batch)
  np.testing.assert_allclose(
    output.routing["gate1"].combine[0], [0, 0, 0, 0.5, 0.5, 0], atol=1e-6
  )
  unchosen, chosen = dict(params), dict(params)
  unchosen["L2_dense_1"] = jax.tree.map(lambda leaf: leaf + 1.0, params["L2_dense_1"])
  chosen["L2_dense_1_copy_1"] = unchosen["L2_dense_1"]
  plain = output.features["z_fused"]
  same = two.predict({"params": unchosen}, batch).features["z_fused"]
  other = two.predict({"params": chosen}, batch).features["z_fused"]
  np.testing.assert_array_equal(same, plain)
  assert float(jnp.max(jnp.abs(other - plain))) > 1e-3


@pytest.mark.parametrize("fusion", ["average", "fixed", "single"])
def test_ablations_of_families_keep_the_structure(fusion):
  options = {"experts_per_family": 2, "fusion": fusion}
  _, output = tiny.shapes_of(tiny.config(options), tiny.batch())
  assert output.routing["gate0"].probs.shape == (6, 6)
  assert output.routing["gate1"].probs.shape == (6, 6)


def test_the_temperature_falls_linearly_through_the_papers_range():
  constant = tiny.config()
  linear = tiny.config({"mi.tau_schedule": "linear"})
  for progress, expected in ((0.0, 0.18), (0.25, 0.155), (1.0, 0.08)):
    share = jnp.asarray(progress)
    np.testing.assert_allclose(hgem.temperature(linear, share), expected, rtol=1e-6)
    np.testing.assert_allclose(hgem.temperature(constant, share), 0.12, rtol=1e-6)


def test_the_scheduled_temperature_reaches_the_information_loss():
  batch = tiny.batch()
  routes = jnp.asarray(np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], 6))
  routing = {name: Routing(routes, routes, routes) for name in ("gate1", "gate2")}
  scores = routes / jnp.linalg.norm(routes, axis=1, keepdims=True)
  output = ModelOutput({}, {"mi_scores": scores}, routing, {"den": jnp.zeros(())})
  losses = {}
  for schedule in ("constant", "linear"):
    config = tiny.config({"mi.tau_schedule": schedule})
    losses[schedule] = [
      float(hgem.auxiliary(config, output, batch, jnp.asarray(p))["mi"])
      for p in (0.0, 0.6, 1.0)
    ]
  assert len(set(losses["constant"])) == 1
  # .18 - .6 * .1 = .12: the constant's value.
  np.testing.assert_allclose(losses["linear"][1], losses["constant"][1], rtol=1e-5)
  assert len(set(losses["linear"])) == 3
