#!/usr/bin/env bash
# Trains on a Cloud TPU VM, or on all hosts of a slice: create, run, fetch, delete.
#
#   NAME=msa ZONE=us-central1-a TYPE=v5litepod-4 launch/tpu_vm.sh create
#   NAME=msa ZONE=us-central1-a launch/tpu_vm.sh run --config=configs/hgem.py
#   NAME=msa ZONE=us-central1-a launch/tpu_vm.sh fetch   # into runs/NAME
#   NAME=msa ZONE=us-central1-a launch/tpu_vm.sh delete
#
# A slice of several hosts needs BUCKET, a Cloud Storage bucket that its service account
# may write: it is mounted as runs/ on all of them, since they share no disk.
#
#   NAME=msa ZONE=us-central1-a TYPE=v5litepod-16 launch/tpu_vm.sh create
#   NAME=msa ZONE=us-central1-a BUCKET=mine launch/tpu_vm.sh run \
#     --config=configs/hgem.py --config.sharding.data=16
#
# SPOT=1 creates a machine that may be taken away; `run` again resumes. VERSION is the
# TPU software version. DRY_RUN=1 prints the commands in place of running them.
set -euo pipefail
cd "$(dirname "$0")/.."
usage() {
  echo "usage: NAME=... ZONE=... launch/tpu_vm.sh create|run|fetch|delete [flags]" >&2
  exit 2
}
[[ $# -ge 1 && -n ${NAME:-} && -n ${ZONE:-} ]] || usage
action=$1
shift

gcloud_() {
  if [[ ${DRY_RUN:-0} == 1 ]]; then
    printf '%q ' gcloud "$@"
    echo
  else
    gcloud "$@"
  fi
}
tpu() { gcloud_ compute tpus tpu-vm "$@" --zone="$ZONE"; }
on_all() { tpu ssh "$NAME" --worker=all --command="$1"; }

case $action in
create)
  spot=()
  if [[ ${SPOT:-0} == 1 ]]; then spot=(--spot); fi
  tpu create "$NAME" --accelerator-type="${TYPE:?e.g. v5litepod-4}" \
    --version="${VERSION:-v2-alpha-tpuv5-lite}" "${spot[@]}"
  ;;
run)
  archive=$(mktemp --suffix=.tar.gz)
  trap 'rm -f "$archive"' EXIT
  tar czf "$archive" --exclude=__pycache__ msa_jax configs setup.cfg pyproject.toml \
    README.md LICENSE
  tpu scp "$archive" "$NAME:msa_jax.tar.gz" --worker=all
  flags="" mount=":"
  if [[ -n ${BUCKET:-} ]]; then
    mount="mkdir -p runs; mountpoint -q runs || gcsfuse --implicit-dirs $BUCKET runs"
    set -- --coordinator=auto "$@"
  fi
  if [[ $# -gt 0 ]]; then printf -v flags '%q ' "$@"; fi
  # One word per worker, quoted here and read by its shell there.
  on_all "set -e; mkdir -p msa_jax && tar xzf msa_jax.tar.gz -C msa_jax && cd msa_jax;
    test -d .venv || python3 -m venv .venv;
    .venv/bin/pip install -q 'jax[tpu]' -e .; $mount;
    .venv/bin/python -m msa_jax.main --workdir=runs/$NAME $flags"
  ;;
fetch)
  mkdir -p runs
  tpu scp --recurse "$NAME:msa_jax/runs/$NAME" runs/ --worker=0
  ;;
delete)
  tpu delete "$NAME" --quiet
  ;;
*) usage ;;
esac
