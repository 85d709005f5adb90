"""H-GEM: hierarchical gated mixture of experts."""

from msa_jax.models.hgem.network import HGEM
from msa_jax.models.hgem.options import (
  AudioExpertConfig,
  DenseExpertConfig,
  DropoutRates,
  GateConfig,
  PolarityExpertConfig,
  RobustExpertConfig,
  SparseExpertConfig,
  TextExpertConfig,
  VisionExpertConfig,
)
from msa_jax.models.hgem.system import SYSTEM, options

__all__ = [
  "HGEM",
  "SYSTEM",
  "AudioExpertConfig",
  "DenseExpertConfig",
  "DropoutRates",
  "GateConfig",
  "PolarityExpertConfig",
  "RobustExpertConfig",
  "SparseExpertConfig",
  "TextExpertConfig",
  "VisionExpertConfig",
  "options",
]
