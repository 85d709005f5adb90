"""DERL as a system: its options and how it is built.

Source: DERL: dual encoder representation learning for multimodal sentiment analysis,
Computer Systems & Applications 2024, 33(4).
"""

from typing import Any

from msa_jax.models.derl.network import DERL, check_modalities, encoded_streams
from msa_jax.models.options import construct, defaults
from msa_jax.models.outputs import primary_output
from msa_jax.models.system import Look, Options, Placed, System
from msa_jax.typing import Spec


def options() -> dict[str, Any]:
  """Options of the model (`config.model`): the fields of `DERL`, the paper's for MOSI,
  and `task`, the task predicted (auto = sentiment, else emotion)."""
  return {"name": "derl", **defaults(DERL, "stacked")}


def build(options: Options, spec: Spec) -> DERL:
  """Builds the network for a corpus.

  Args:
    options: see the function `options`.
    spec: of the corpus.

  Raises:
    UserError: a value out of range, or one that contradicts the corpus.
  """
  output = primary_output(options, spec)
  model = construct(DERL, options, output=output, modalities=spec.modalities)
  check_modalities(model, spec.modalities, spec.modalities)
  return model


def reads(options: Options, spec: Spec) -> tuple[str, ...]:
  """All modalities, but of variants without the cross-modal encoder those encoded."""
  streams = encoded_streams(options["variant"], spec.modalities)
  return spec.modalities if streams.cross else streams.intra


# Tables 4 and 5, figure 5; the distance's weight, which the paper has at .005 and .5.
ABLATIONS = {
  "encoders": {
    "full": {},
    **{
      name: {"model.variant": name}
      for name in ("ie_t", "ie_a", "ie_v", "ie_tav")
      + ("cie_tav", "cie_atv", "cie_vta", "cie_all")
    },
  },
  "modules": {
    "full": {},
    "without_filter": {"model.use_filter": False},
    "without_enhancement": {"model.use_enhancement": False},
    "without_both": {"model.use_filter": False, "model.use_enhancement": False},
    "without_distance": {"loss.dissimilarity": 0.0},
  },
  "layers": {
    f"layers_{n}": Placed({"model.num_layers": n}, "encoder layers", n)
    for n in range(1, 7)
  },
  "distance": {
    f"distance_{weight:g}": Placed(
      {"loss.dissimilarity": weight}, "weight of the distance", weight
    )
    for weight in (0.0, 0.005, 0.05, 0.5)
  },
}

LOOKS = (
  Look("Enhancement map (Eq. 19)", "enhance_", "weights", "map"),
  Look("Gate of the filter unit (Eq. 21)", "filter_", "gate", "histogram"),
)

SYSTEM = System(
  build=build,
  reads=reads,
  ablations=ABLATIONS,
  looks=LOOKS,
  search_space={
    "model.dropout.attention": "0..0.5",
    "model.dropout.residual": "0..0.5",
    "model.dropout.ffn": "0..0.5",
    "model.dropout.text": "0..0.5",
    "model.num_layers": "1..4",
    "loss.dissimilarity": "1e-3..0.5:log",
  },
)
