"""The table of systems. Adding one touches its file, one line here and its config."""

from msa_jax.models import awf, derl, hgem, lf_dnn, lf_lstm, mmolre, momke_stages, tfn
from msa_jax.models.base import System
from msa_jax.models.encoded import with_encoder

_ROWS: dict[str, System] = {
  "awf": awf.SYSTEM,
  "derl": derl.SYSTEM,
  "hgem": hgem.SYSTEM,
  "lf_dnn": lf_dnn.SYSTEM,
  "lf_lstm": lf_lstm.SYSTEM,
  "mmolre": mmolre.SYSTEM,
  "momke": momke_stages.SYSTEM,
  "tfn": tfn.SYSTEM,
}

# Any of them may have a text encoder inside.
SYSTEMS = {name: with_encoder(system) for name, system in _ROWS.items()}
