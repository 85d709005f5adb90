"""Predict with a trained run (of own_data.py), from arrays."""

import numpy as np

import msa_jax

random = np.random.default_rng(1)
predictor = msa_jax.Predictor("runs/a")
one = predictor(text=random.normal(size=(6, 8)), audio=random.normal(size=(20, 5)))
several = predictor(text=[np.ones((4, 8)), np.ones((6, 8))])  # audio is missing

print("one sample", one["sentiment"], "of several", several["sentiment"])
print("gates", {name: routing.combine for name, routing in one.routing.items()})
