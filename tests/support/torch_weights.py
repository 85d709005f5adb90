"""Parameters of our layers from the arrays of PyTorch's modules, by their names."""

import jax
import jax.numpy as jnp
import numpy as np


def weights(arrays, prefix):
  """Arrays under a prefix, by the rest of their names."""
  return {k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)}


def dense(w, name):
  """`Linear` -> `Dense`."""
  kernel = {"kernel": jnp.asarray(w[f"{name}.weight"].T)}
  if f"{name}.bias" in w:
    kernel["bias"] = jnp.asarray(w[f"{name}.bias"])
  return kernel


def norm(w, name):
  """`LayerNorm` or `BatchNorm` -> scale and bias."""
  return {
    "scale": jnp.asarray(w[f"{name}.weight"]),
    "bias": jnp.asarray(w[f"{name}.bias"]),
  }


def statistics(w, name):
  """Running statistics of a `BatchNorm`."""
  return {
    "mean": jnp.asarray(w[f"{name}.running_mean"]),
    "var": jnp.asarray(w[f"{name}.running_var"]),
  }


def lstm(w, name, suffix="_l0"):
  """One direction of an `LSTM`'s layer, or an `LSTMCell` (suffix "")."""
  bias = w[f"{name}.bias_ih{suffix}"] + w[f"{name}.bias_hh{suffix}"]
  return {
    "input_kernel": jnp.asarray(w[f"{name}.weight_ih{suffix}"].T[None]),
    "recurrent_kernel": jnp.asarray(w[f"{name}.weight_hh{suffix}"].T[None]),
    "bias": jnp.asarray(bias[None]),
  }


def attention(w, name):
  """`MultiheadAttention` with packed projections -> `MultiHeadAttention`."""
  kernels = np.split(w[f"{name}.in_proj_weight"], 3)
  biases = np.split(w[f"{name}.in_proj_bias"], 3)
  made = {
    part: {"kernel": jnp.asarray(kernel.T), "bias": jnp.asarray(bias)}
    for part, kernel, bias in zip(
      ("query", "key", "value"), kernels, biases, strict=True
    )
  }
  return {**made, "out": dense(w, f"{name}.out_proj")}


def crossmodal(w, name):
  """MulT's `TransformerEncoder` -> `CrossmodalEncoder`."""
  layers = []
  while f"{name}.layers.{len(layers)}.fc1.weight" in w:
    layer = f"{name}.layers.{len(layers)}"
    layers.append(
      {
        "attention": attention(w, f"{layer}.self_attn"),
        "ffn_1": dense(w, f"{layer}.fc1"),
        "ffn_2": dense(w, f"{layer}.fc2"),
        "norm_attention": norm(w, f"{layer}.layer_norms.0"),
        "norm_ffn": norm(w, f"{layer}.layer_norms.1"),
      }
    )
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
  return {"layers": stacked, "norm": norm(w, f"{name}.layer_norm")}
