"""What systems share: layers, losses, the step, missing modalities."""

from mutants.mutation import Mutation

MUTATIONS = [
  Mutation(
    "attention: a share is rounded up in floats",
    "layers/attention.py",
    "math.ceil(fractions.Fraction(str(float(fraction))) * number)",
    "math.ceil(fraction * number)",
    ("tests/layers/test_attention.py", "-k", "share"),
  ),
  Mutation(
    "batches: every row of a training batch draws for itself",
    "step/recipe.py",
    "jnp.broadcast_to(jax.random.uniform(of_batch, shape[-1:]), shape)",
    "jax.random.uniform(of_batch, shape)",
    ("tests/runs/test_missing.py", "-k", "place_in_the_epoch"),
  ),
  Mutation(
    "batches: every row of a split draws for itself",
    "data/missing/sampling.py",
    '  names = [f"batch {number}" for number in range(n_batches)]\n',
    "  names, position = list(split.ids), np.arange(len(split))\n",
    ("tests/data/missing/test_patterns.py", "-k", "drawn_batch"),
  ),
  Mutation(
    "absent content: lost steps keep it",
    "layers/masking.py",
    "visible = mask & ~lost",
    "visible = mask",
    ("tests/layers/test_masking.py",),
  ),
  Mutation(
    "prior: rows without content keep the network's prediction",
    "step/recipe.py",
    "jnp.where(shown, value, prior)",
    "jnp.where(shown | True, value, prior)",
    ("tests/runs/test_missing.py", "-k", "prior"),
  ),
  Mutation(
    "route losses: a row is compared with itself",
    "losses/routing.py",
    "jnp.where(real, size - 1.0, 0.0)",
    "jnp.where(real, size, 0.0)",
    ("tests/losses/test_routing.py", "-k", "discriminat"),
  ),
  Mutation(
    "recurrent: padding moves the state",
    "layers/kernels/recurrence.py",
    "    cell = jnp.where(here, new_cell, cell)\n",
    "    cell = new_cell\n",
    ("tests/layers/test_recurrent.py",),
  ),
  Mutation(
    "mean of the parameters: the newest alone",
    "step/ema.py",
    "(mean + (1.0 - kept) * (new - mean))",
    "(mean + (new - mean))",
    ("tests/step/test_ema.py",),
  ),
  Mutation(
    "task gradients: sums of an epoch go on into the next",
    "step/task_gradients.py",
    "jnp.where(place == 0, 0.0, total)",
    "total",
    ("tests/step/test_objective.py", "-k", "cosines_of_an_epoch"),
  ),
]
