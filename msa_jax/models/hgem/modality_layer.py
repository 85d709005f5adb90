"""H-GEM's first layer: an expert per modality, and Gate 0, which weighs them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.layers.attention import LAYER_NORM_EPSILON
from msa_jax.models.hgem.embedding import pool, short_name
from msa_jax.models.hgem.experts import AudioExpert, TextExpert, VisionExpert
from msa_jax.models.hgem.gates import Gate
from msa_jax.models.hgem.options import (
  AudioExpertConfig,
  DropoutRates,
  TextExpertConfig,
  VisionExpertConfig,
)
from msa_jax.typing import Routing


class ModalityLayerOutput(NamedTuple):
  """Attributes: hidden, per modality [b t d]; routing, of Gate 0; scale [b m], its
  weights in units of the even share, so that an undecided gate changes nothing."""

  hidden: Sequence[jax.Array]
  routing: Routing
  scale: jax.Array


class ModalityLayer(nn.Module):
  """Experts of the modalities, and Gate 0's weights of them.

  Attributes:
    modalities: names, in order.
    width: of the tokens.
    max_steps: greatest number of steps.
    num_heads: attention heads.
    text, vision, audio: sizes of the experts; `vision` also of other modalities.
    gate_dim: hidden width of Gate 0's units.
    scales_outputs: whether the weights are applied here, on the experts' outputs,
      where the next layer's norms erase them.
    rates: dropout rates.
    deterministic: True = evaluation.
    dtype: compute type.
  """

  modalities: tuple[str, ...]
  width: int
  max_steps: int
  num_heads: int = 2
  text: TextExpertConfig = TextExpertConfig()
  vision: VisionExpertConfig = VisionExpertConfig()
  audio: AudioExpertConfig = AudioExpertConfig()
  gate_dim: int = 32
  scales_outputs: bool = False
  rates: DropoutRates = DropoutRates()
  deterministic: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, embedded: Sequence[Float[Array, "b t d"]], mask: Bool[Array, "b t m"]
  ) -> ModalityLayerOutput:
    seen = jnp.any(mask, axis=1)  # [b m]
    gate = Gate(
      self.gate_dim,
      len(self.modalities),
      self.modalities,
      dropout=self.rates.gate,
      deterministic=self.deterministic,
      name="gate0",
    )
    routing = gate(pool(embedded, mask), seen, seen)
    count = jnp.sum(seen, axis=1, keepdims=True).astype(jnp.float32)
    scale = (count * routing.combine).astype(self.dtype)  # [b m]
    hidden = []
    for slot, name in enumerate(self.modalities):
      short = short_name(name)
      project = nn.Dense(self.width, dtype=self.dtype, name=f"out_{short}")
      norm = nn.LayerNorm(
        epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name=f"ln_out_{short}"
      )
      values = self._expert(name)(embedded[slot], mask[..., slot])
      values = norm(project(values))
      if self.scales_outputs:
        values = values * scale[:, slot, None, None]
      hidden.append(jnp.where(mask[..., slot, None], values, 0.0))
    return ModalityLayerOutput(hidden, routing, scale)

  @nn.nowrap
  def _expert(self, modality: str) -> nn.Module:
    if modality == "audio":
      return AudioExpert(
        self.audio.lstm_dim,
        self.audio.kernel_size,
        self.rates.expert,
        self.deterministic,
        self.dtype,
        name="L1_audio",
      )
    sizes = self.text if modality == "text" else self.vision
    shared = {
      "num_layers": sizes.num_layers,
      "num_heads": self.num_heads,
      "ffn_dim": sizes.ffn_dim,
      "attention_dropout": self.rates.attention,
      "ffn_dropout": self.rates.ffn,
      "deterministic": self.deterministic,
      "dtype": self.dtype,
    }
    if modality == "text":
      return TextExpert(**shared, name="L1_text")
    name = "L1_vis" if modality == "vision" else f"L1_{modality}"
    return VisionExpert(self.max_steps, self.vision.kernel_size, **shared, name=name)
