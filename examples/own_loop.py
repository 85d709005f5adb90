"""Your loop and your optax; our model, our losses; no config object."""

import jax
import numpy as np
import optax

import msa_jax
from msa_jax.losses.task import masked_average, task_loss

random = np.random.default_rng(0)
y = random.uniform(-3, 3, 32)
arrays = {"text": random.normal(size=(32, 6, 8)) + y[:, None, None]}
batch = msa_jax.Batch.from_arrays(arrays, labels={"sentiment": y})
model, optimizer = msa_jax.models.LFDNN(modalities=("text",)), optax.adam(3e-3)
params = model.init(jax.random.key(0), batch)["params"]


def loss(params, key):
  out = model.apply({"params": params}, batch, train=True, rngs={"dropout": key})
  label, guess = batch.labels["sentiment"], out.predictions["sentiment"]
  return masked_average(task_loss("regression", "l1", guess, label), label.mask)


@jax.jit
def step(params, state, key):
  value, gradient = jax.value_and_grad(loss)(params, key)
  updates, state = optimizer.update(gradient, state, params)
  return optax.apply_updates(params, updates), state, value


state = optimizer.init(params)
for i in range(50):
  params, state, value = step(params, state, jax.random.key(i))
  if i % 10 == 0:
    print(f"step {i}: mean absolute error {value:.3f}")
