"""`python -m msa_jax.studies balance`: trains and compares what a paper's table does.

  python -m msa_jax.studies balance --config=configs/awf.py --workdir=studies/awf
  python -m msa_jax.studies balance --config=configs/awf.py --table=optimizers \\
    --workdir=studies/awf
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from msa_jax.typing import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study.")
_TABLE = flags.DEFINE_string(
  "table", "balance", "What to compare: balance, optimizers or attention."
)
STUDIES = ("balance",)


def main(arguments: list[str]) -> None:
  """Runs one study; bad input ends with one line and exit code 2."""
  from msa_jax.studies import balance
  from msa_jax.train import selection
  from msa_jax.train.compilation import use_cache
  from msa_jax.train.rundir import RunDirectory

  use_cache()
  logging.set_verbosity(logging.WARNING)
  try:
    if arguments[1:] != ["balance"]:
      raise UserError(f"choose a study: {', '.join(STUDIES)}.")
    if _CONFIG.value is None or _WORKDIR.value is None:
      raise UserError("a study needs --config=configs/<system>.py and --workdir.")
    report = balance.study(_CONFIG.value, _WORKDIR.value, _TABLE.value)
    trained = RunDirectory(f"{_WORKDIR.value}/with").config()
    print(balance.as_text(report, selection.criterion(trained).terms[0][2]))
  except UserError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  app.run(main)
