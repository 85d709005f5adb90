"""Systems: networks that can be used alone, and the table that trains find them in.

>>> model = models.HGEM()
>>> variables = model.init(jax.random.key(0), batch)
>>> models.register("mine", System(build=...))
"""

from msa_jax.models.almt import ALMT
from msa_jax.models.cenet import CENet
from msa_jax.models.derl import DERL
from msa_jax.models.ef_lstm import EFLSTM
from msa_jax.models.hgem import HGEM
from msa_jax.models.late_fusion.awf import AWF
from msa_jax.models.late_fusion.lf_dnn import LFDNN
from msa_jax.models.late_fusion.lf_lstm import LFLSTM
from msa_jax.models.late_fusion.lmf import LMF
from msa_jax.models.late_fusion.multitask import MLFDNN, MLMF, MTFN
from msa_jax.models.late_fusion.tfn import TFN
from msa_jax.models.mag_bert import MAGBert
from msa_jax.models.mfn.graph_mfn import GraphMFN
from msa_jax.models.mfn.mfn import MFN
from msa_jax.models.misa import MISA
from msa_jax.models.mmim import MMIM
from msa_jax.models.mmolre import MMoLRE
from msa_jax.models.momke import MoMKE
from msa_jax.models.mult import MulT
from msa_jax.models.outputs import (
  REGRESSION,
  OutputSpec,
  output_spec,
  primary_output,
  shape_predictions,
)
from msa_jax.models.registry import (
  SYSTEMS,
  get,
  names,
  provider,
  register,
  system_of,
)
from msa_jax.models.self_mm import SelfMM
from msa_jax.models.system import Stage, System, TaskTerm, Turn
from msa_jax.models.tetfn import TETFN
from msa_jax.models.text_only import TextOnly

__all__ = [
  "ALMT",
  "AWF",
  "CENet",
  "DERL",
  "EFLSTM",
  "GraphMFN",
  "HGEM",
  "LFDNN",
  "LFLSTM",
  "MAGBert",
  "MISA",
  "MMIM",
  "LMF",
  "MFN",
  "MLFDNN",
  "MLMF",
  "MMoLRE",
  "MTFN",
  "MoMKE",
  "MulT",
  "OutputSpec",
  "REGRESSION",
  "SYSTEMS",
  "SelfMM",
  "Stage",
  "System",
  "TETFN",
  "TFN",
  "TextOnly",
  "TaskTerm",
  "Turn",
  "get",
  "names",
  "output_spec",
  "primary_output",
  "provider",
  "register",
  "shape_predictions",
  "system_of",
]
