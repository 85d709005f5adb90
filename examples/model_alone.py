"""A model alone: no config, no file, no trainer."""

import jax
import numpy as np

import msa_jax

random = np.random.default_rng(0)
x, a = random.normal(size=(4, 9, 300)), random.normal(size=(4, 30, 74))  # [b t d]
n = [9, 7, 2, 5]  # real tokens of each sample

model = msa_jax.models.HGEM()
batch = msa_jax.Batch.from_arrays({"text": x, "audio": a}, lengths={"text": n})
variables = model.init(jax.random.key(0), batch)
out = model.apply(variables, batch)

print("sentiment", out.predictions["sentiment"])
print("gates", {name: routing.probs.shape for name, routing in out.routing.items()})
