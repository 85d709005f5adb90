"""The table of systems. Adding one touches its file, one line here and its config."""

from msa_jax.models import derl, hgem, mmolre, momke
from msa_jax.models.late_fusion import awf, lf_dnn, lf_lstm, tfn
from msa_jax.models.system import System
from msa_jax.models.with_text_encoder import with_encoder

_ROWS: dict[str, System] = {
  "awf": awf.SYSTEM,
  "derl": derl.SYSTEM,
  "hgem": hgem.SYSTEM,
  "lf_dnn": lf_dnn.SYSTEM,
  "lf_lstm": lf_lstm.SYSTEM,
  "mmolre": mmolre.SYSTEM,
  "momke": momke.SYSTEM,
  "tfn": tfn.SYSTEM,
}

# Any of them may have a text encoder inside.
SYSTEMS = {name: with_encoder(system) for name, system in _ROWS.items()}
