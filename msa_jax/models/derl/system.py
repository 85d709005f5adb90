"""DERL as a system: its options and how it is built.

Source: DERL: dual encoder representation learning for multimodal sentiment analysis,
Computer Systems & Applications 2024, 33(4).
"""

import jax.numpy as jnp
import ml_collections

from msa_jax.errors import UserError
from msa_jax.losses.consistency import DISTANCES
from msa_jax.models.derl.network import DERL, encoded_streams, expected_modalities
from msa_jax.models.outputs import primary_output
from msa_jax.models.system import Options, System
from msa_jax.typing import Spec

VARIANTS = (
  "full",
  *("ie_t", "ie_a", "ie_v", "ie_tav"),
  *("cie_tav", "cie_atv", "cie_vta", "cie_all"),
)

_CHOICES = {
  "input_norm": ("batch", "layer", "none"),
  "pe": ("sin", "learned"),
  "attn_scale": ("head", "model"),
  "norm_style": ("post", "pre"),
  "eu_norm": ("row", "frobenius"),
  "cie_source": ("enhanced", "layer_input"),
  "variant": VARIANTS,
  "pool": ("mean", "first", "last", "after_mlp"),
  "dis": DISTANCES,
  "dtype": ("float32", "bfloat16"),
}


def options() -> ml_collections.ConfigDict:
  """Options of the model (`config.model`): the paper's for MOSI."""
  return ml_collections.ConfigDict(
    {
      "name": "derl",
      "task": "auto",  # the task predicted; auto = sentiment, else emotion
      "dtype": "float32",
      "d": 50,
      "n_heads": 10,
      "n_layers": 2,
      "ffn_mult": 4,  # hidden width of the feed-forward parts, in d
      "kernels": (3, 3, 3),  # of text, audio, vision, then any others
      "input_norm": "batch",
      "pe": "sin",
      "attn_scale": "head",
      "norm_style": "post",
      "eu_norm": "row",
      "gate_last": False,  # EU and FU after the last layer too
      "cie_source": "enhanced",  # layer_input: keys and values stay those of layer 1
      "share_gates": False,  # one EU and one FU for all layers and modalities
      "use_eu": True,
      "use_fu": True,
      "variant": "full",
      "pool": "mean",
      "dis": "l2",
      "dropout": {"eu": 0.1, "attn": 0.1, "res": 0.1, "ffn": 0.1, "text": 0.0},
    }
  )


def build(options: Options, spec: Spec) -> DERL:
  """Builds the network for a corpus.

  Args:
    options: see the function `options`.
    spec: of the corpus.

  Raises:
    UserError: a value out of range, or one that contradicts the corpus.
  """
  model = ml_collections.FrozenConfigDict(options)
  modalities = spec.modalities
  _check_values(model)
  _check_corpus(model, modalities)
  return DERL(
    options=model,
    modalities=modalities,
    lengths=tuple((each, spec.lengths[each]) for each in modalities),
    target=primary_output(options, spec),
    dtype=jnp.bfloat16 if model.dtype == "bfloat16" else jnp.float32,
  )


def _check_values(model: ml_collections.FrozenConfigDict) -> None:
  for key, choices in _CHOICES.items():
    if model[key] not in choices:
      raise UserError(f"model.{key}={model[key]!r}: choose one of {choices}")
  for key in ("d", "n_heads", "n_layers", "ffn_mult"):
    if model[key] < 1:
      raise UserError(f"model.{key}={model[key]}: must be at least 1")
  if model.d % model.n_heads:
    raise UserError(f"model.n_heads={model.n_heads}: must divide model.d={model.d}")
  if model.pe == "sin" and model.d % 2:
    raise UserError(f"model.d={model.d}: must be even for model.pe='sin'")
  for site, rate in model.dropout.items():
    if not 0.0 <= rate < 1.0:
      raise UserError(f"model.dropout.{site}={rate}: must be in [0, 1)")


def _check_corpus(
  model: ml_collections.FrozenConfigDict, modalities: tuple[str, ...]
) -> None:
  expected = expected_modalities(modalities)
  if len(model.kernels) != len(expected) or min(model.kernels) < 1:
    raise UserError(
      f"model.kernels={model.kernels}: give one positive size for each of {expected}"
    )
  targets = encoded_streams(model.variant, modalities)
  lacking = sorted({*targets.cross, *targets.intra} - set(modalities))
  if lacking:
    raise UserError(
      f"model.variant={model.variant!r} encodes {lacking[0]}; the corpus has"
      f" {modalities}"
    )


# Tables 4 and 5, figure 5.
ABLATIONS = {
  "encoders": {
    **{
      name: {"model.variant": name}
      for name in ("ie_t", "ie_a", "ie_v", "ie_tav")
      + ("cie_tav", "cie_atv", "cie_vta", "cie_all")
    },
    "full": {},
  },
  "modules": {
    "without_filter": {"model.use_fu": False},
    "without_enhancement": {"model.use_eu": False},
    "without_both": {"model.use_fu": False, "model.use_eu": False},
    "without_distance": {"loss.dis": 0.0},
    "full": {},
  },
  "layers": {f"layers_{n}": {"model.n_layers": n} for n in range(1, 7)},
}

SYSTEM = System(build=build, ablations=ABLATIONS)
