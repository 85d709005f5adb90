"""DERL's blocks against numbers of `torch.nn` (stored; data/make_derl_reference.py)."""

import flax
import jax.numpy as jnp
import numpy as np
from paths import REFERENCE

from msa_jax.layers.convolution import MaskedConvolution
from msa_jax.layers.normalization import MaskedBatchNorm
from msa_jax.models.derl.parts import EncoderLayer

ARRAYS = REFERENCE / "derl_reference.npz"


def stored(prefix):
  with np.load(ARRAYS) as arrays:
    flat = {
      tuple(name.split("/")[1:]): jnp.asarray(arrays[name])
      for name in arrays.files
      if name.startswith(f"{prefix}/")
    }
  return flax.traverse_util.unflatten_dict(flat)


def test_the_intra_modal_encoder_equals_the_encoder_layer_of_pytorch():
  params, target = stored("intra"), stored("target")
  expected = params.pop("out")
  output = EncoderLayer(2, 8).apply(
    {"params": params}, target["values"], target["mask"]
  )
  real = np.asarray(target["mask"])
  np.testing.assert_allclose(output[real], expected[real], atol=1e-5)


def test_the_cross_modal_encoder_equals_chained_attention_of_pytorch():
  params, target = stored("cross"), stored("target")
  first, second = stored("first"), stored("second")
  expected = params.pop("out")
  output = EncoderLayer(2, 8, (True, True)).apply(
    {"params": params},
    target["values"],
    target["mask"],
    (first["values"], second["values"]),
    (first["mask"], second["mask"]),
  )
  real = np.asarray(target["mask"])
  np.testing.assert_allclose(output[real], expected[real], atol=1e-5)


def test_the_input_stage_equals_convolution_and_batch_norm_of_pytorch():
  values = stored("target")["values"]
  everything = jnp.ones(values.shape[:2], bool)
  convolved = MaskedConvolution(4).apply({"params": stored("conv")}, values, everything)
  params = stored("norm")
  expected = params.pop("out")
  norm = MaskedBatchNorm(use_running_average=False)
  statistics = {"mean": jnp.zeros(4), "var": jnp.ones(4)}
  output, _ = norm.apply(
    {"params": params, "batch_stats": statistics},
    convolved,
    everything,
    mutable=["batch_stats"],
  )
  np.testing.assert_allclose(output, expected, atol=1e-5)
