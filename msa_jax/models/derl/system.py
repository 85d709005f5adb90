"""DERL as a system: its options and how it is built.

Source: DERL: dual encoder representation learning for multimodal sentiment analysis,
Computer Systems & Applications 2024, 33(4).
"""

from typing import Any

from msa_jax.models.derl.network import DERL, check_modalities
from msa_jax.models.options import construct, defaults
from msa_jax.models.outputs import primary_output
from msa_jax.models.system import Options, System
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


SYSTEM = System(build=build)
