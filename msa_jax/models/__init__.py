"""The table of systems. Adding one touches its file, one line here and its config."""

from msa_jax.errors import UserError
from msa_jax.models import derl, hgem, mmolre, momke
from msa_jax.models.late_fusion import awf, lf_dnn, lf_lstm, tfn
from msa_jax.models.system import System

SYSTEMS: dict[str, System] = {
  "awf": awf.SYSTEM,
  "derl": derl.SYSTEM,
  "hgem": hgem.SYSTEM,
  "lf_dnn": lf_dnn.SYSTEM,
  "lf_lstm": lf_lstm.SYSTEM,
  "mmolre": mmolre.SYSTEM,
  "momke": momke.SYSTEM,
  "tfn": tfn.SYSTEM,
}


def get(name: str) -> System:
  """The system of a name.

  Raises:
    UserError: there is none.
  """
  if name not in SYSTEMS:
    raise UserError(f"config.model.name={name!r} must be one of {sorted(SYSTEMS)}.")
  return SYSTEMS[name]
