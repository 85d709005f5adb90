"""The groups of H-GEM's options: sizes of each kind of expert, gates, dropout rates."""

import dataclasses
from collections.abc import Sequence

from msa_jax.errors import UserError
from msa_jax.models.options import check

FUSION_EXPERTS = ("sparse", "dense", "robust")


def check_disabled(disabled: Sequence[str], *layers: Sequence[str]) -> None:
  """Checks `disabled_experts` against the names of each layer's experts.

  Raises:
    UserError: an unknown name, or a layer without any expert left.
  """
  known = [name for layer in layers for name in layer]
  for name in disabled:
    if name not in known:
      raise UserError(f"model.disabled_experts: no expert {name!r}; choose of {known}")
  for layer in layers:
    if set(layer) <= set(disabled):
      raise UserError(f"model.disabled_experts: leave at least one of {tuple(layer)}")


@dataclasses.dataclass(frozen=True)
class TextExpertConfig:
  """The text expert: transformer blocks.

  Attributes:
    num_layers: number of blocks.
    ffn_dim: hidden width of their feed-forward parts.
  """

  num_layers: int = 1
  ffn_dim: int = 256

  def __post_init__(self):
    check(self, "model.text_expert", positive=("num_layers", "ffn_dim"))


@dataclasses.dataclass(frozen=True)
class VisionExpertConfig:
  """The vision expert, also of any modality beyond the usual three.

  Attributes:
    kernel_size: steps of the residual convolution.
    num_layers: number of transformer blocks.
    ffn_dim: hidden width of their feed-forward parts.
  """

  kernel_size: int = 3
  num_layers: int = 1
  ffn_dim: int = 256

  def __post_init__(self):
    sizes = ("kernel_size", "num_layers", "ffn_dim")
    check(self, "model.vision_expert", positive=sizes)


@dataclasses.dataclass(frozen=True)
class AudioExpertConfig:
  """The audio expert: bidirectional LSTM, convolution, temporal attention.

  Attributes:
    lstm_dim: width of the LSTM per direction.
    kernel_size: steps of the convolution.
  """

  lstm_dim: int = 32
  kernel_size: int = 3

  def __post_init__(self):
    check(self, "model.audio_expert", positive=("lstm_dim", "kernel_size"))


@dataclasses.dataclass(frozen=True)
class GateConfig:
  """The four gates.

  Attributes:
    hidden_dims: hidden width of the gating units of gates 0 to 3.
    num_units: gating units of Gate 2; gates 0 and 1 have one per modality, Gate 3 one
      per polarity expert.
    fusion_top_k: fusion experts that Gate 1 keeps per sample.
    polarity_top_k: polarity experts that Gate 2 keeps per sample.
    modality_scale: where Gate 0's weights act: on the `tokens` that layer 2 reads,
      after their norm, and on the views of Gate 1; or on the `outputs` of the modality
      experts, as in versions before 0.2, where those norms erase them.
  """

  hidden_dims: tuple[int, ...] = (32, 32, 32, 32)
  num_units: int = 3
  fusion_top_k: int = 2
  polarity_top_k: int = 2
  modality_scale: str = "tokens"

  def __post_init__(self):
    sizes = ("num_units", "fusion_top_k", "polarity_top_k")
    choices = {"modality_scale": ("tokens", "outputs")}
    check(self, "model.gates", choices=choices, positive=sizes)
    if len(self.hidden_dims) != 4 or min(self.hidden_dims) < 1:
      raise UserError(
        f"model.gates.hidden_dims={self.hidden_dims} must be four widths, of gates 0"
        " to 3"
      )


@dataclasses.dataclass(frozen=True)
class SparseExpertConfig:
  """The sparse fusion expert: top-k attention over the tokens of all modalities.

  Attributes:
    num_layers: number of transformer blocks.
    ffn_dim: hidden width of their feed-forward parts.
    keep_fraction: share r of the tokens that a query keeps (Eq. 4), in (0, 1].
    keep_share_of: what r is a share of: the `valid` tokens of the sample, or the
      `nominal` number of modalities * max_steps, of which a short sample keeps all.
  """

  num_layers: int = 1
  ffn_dim: int = 256
  keep_fraction: float = 0.25
  keep_share_of: str = "valid"

  def __post_init__(self):
    check(
      self,
      "model.sparse_expert",
      choices={"keep_share_of": ("valid", "nominal")},
      positive=("num_layers", "ffn_dim"),
    )
    if not 0.0 < self.keep_fraction <= 1.0:
      raise UserError(
        f"model.sparse_expert.keep_fraction={self.keep_fraction} must be in (0, 1]"
      )


@dataclasses.dataclass(frozen=True)
class DenseExpertConfig:
  """The dense fusion expert.

  Attributes:
    hidden_dim: width of the first of its two layers.
  """

  hidden_dim: int = 128

  def __post_init__(self):
    check(self, "model.dense_expert", positive=("hidden_dim",))


@dataclasses.dataclass(frozen=True)
class RobustExpertConfig:
  """The robust fusion expert.

  Attributes:
    hidden_dim: width of its hidden layer.
    denoiser_dim: width of the denoiser's hidden layer.
    noise_std: standard deviation of the noise on its input in training (Eq. 7).
    slot_dropout: probability that the denoiser does not see a modality in training.
  """

  hidden_dim: int = 128
  denoiser_dim: int = 128
  noise_std: float = 0.1
  slot_dropout: float = 0.1

  def __post_init__(self):
    check(
      self,
      "model.robust_expert",
      positive=("hidden_dim", "denoiser_dim"),
      not_negative=("noise_std",),
      rates=("slot_dropout",),
    )


@dataclasses.dataclass(frozen=True)
class PolarityExpertConfig:
  """The polarity experts.

  Attributes:
    num_experts: one per polarity, or one per class of an emotion task.
    hidden_dim: width of their hidden layers.
    num_layers: number of hidden layers.
  """

  num_experts: int = 3
  hidden_dim: int = 128
  num_layers: int = 2

  def __post_init__(self):
    sizes = ("num_experts", "hidden_dim", "num_layers")
    check(self, "model.polarity_experts", positive=sizes)


@dataclasses.dataclass(frozen=True)
class DropoutRates:
  """Dropout rates by site, each in [0, 1).

  Attributes:
    embed: of the embedded modalities.
    attention: of the attention probabilities.
    ffn: of the hidden layers of transformer blocks.
    gate: of the hidden layers of gating units.
    expert: of the LSTM's states and the hidden layers of dense, robust and polarity
      experts.
    head: of the head's hidden layer.
  """

  embed: float = 0.1
  attention: float = 0.25
  ffn: float = 0.1
  gate: float = 0.1
  expert: float = 0.1
  head: float = 0.1

  def __post_init__(self):
    names = tuple(field.name for field in dataclasses.fields(self))
    check(self, "model.dropout", rates=names)
