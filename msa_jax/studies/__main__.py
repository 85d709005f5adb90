"""`python -m msa_jax.studies STUDY`: trains and compares what a paper's table does.

  python -m msa_jax.studies balance --config=configs/awf.py --workdir=studies/awf
  python -m msa_jax.studies balance --config=configs/awf.py --table=optimizers \\
    --workdir=studies/awf
  python -m msa_jax.studies ablation --config=configs/derl.py --table=modules \\
    --workdir=studies/derl
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from msa_jax.typing import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study.")
_TABLE = flags.DEFINE_string(
  "table",
  None,
  "What to compare. balance: balance (the default), optimizers, attention."
  " ablation: the system's own, e.g. DERL's encoders, modules, layers.",
)
STUDIES = ("balance", "ablation")


def main(arguments: list[str]) -> None:
  """Runs one study; bad input ends with one line and exit code 2."""
  from msa_jax.studies import ablation, balance
  from msa_jax.train.compilation import use_cache

  use_cache()
  logging.set_verbosity(logging.WARNING)
  try:
    if len(arguments) != 2 or arguments[1] not in STUDIES:
      raise UserError(f"choose a study: {', '.join(STUDIES)}.")
    if _CONFIG.value is None or _WORKDIR.value is None:
      raise UserError("a study needs --config=configs/<system>.py and --workdir.")
    chosen = {"balance": balance, "ablation": ablation}[arguments[1]]
    table = _TABLE.value or ("balance" if chosen is balance else "")
    report = chosen.study(_CONFIG.value, _WORKDIR.value, table)
    print(chosen.as_text(report, ablation.metric_of(_WORKDIR.value, report)))
  except UserError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  app.run(main)
