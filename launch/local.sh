#!/usr/bin/env bash
# Trains on this machine, in a virtual environment that is made at the first call.
#
#   launch/local.sh --config=configs/hgem.py --workdir=runs/a
#
# JAX_EXTRA=cuda13 (or tpu) installs JAX for an accelerator, PYTHON chooses the
# interpreter, VENV the environment. The same command again resumes the run.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
if [[ ! -x $venv/bin/python ]]; then
  "${PYTHON:-python3}" -m venv "$venv"
  if [[ -n ${JAX_EXTRA:-} ]]; then
    "$venv/bin/pip" install -q "jax[$JAX_EXTRA]"
  fi
  "$venv/bin/pip" install -q -e .
fi
exec "$venv/bin/python" -m msa_jax.main "$@"
