#!/usr/bin/env bash
# Reproduce the course report: its nine ablations, then its table of five models.
#
#   scripts/reproduce_report.sh [--reduced] [OPTION...]
#
# Every OPTION goes to both `study run` and `benchmark`: --data-dir DIR, --weights FILE,
# --runs-dir DIR, --tracker none, ... Run the same command again to resume: finished runs are
# skipped. To use other machines, give --scheduler ADDRESS: a Dask scheduler with workers on them.
# The full report needs a GPU. --reduced takes fewer values, fewer epochs and a CNN with fewer
# channels: about an hour on two cores.
# Rankings and figures are in RUNS_DIR/studies/NAME; the last table summarises all studies.
set -euo pipefail

reduced=false
runs_dir=runs
options=()
while [ $# -gt 0 ]; do
  case $1 in
    --reduced) reduced=true ;;
    --runs-dir=*) runs_dir=${1#*=} ;;
    --runs-dir) runs_dir=${2:?--runs-dir needs a folder}; shift ;;
    *) options+=("$1") ;;
  esac
  shift
done
options+=(--runs-dir "$runs_dir")

study() { # NAME, and the options of the reduced form
  local name=$1
  shift
  $reduced || set --
  echo "== $name${*:+ ($*)}"
  stl10bench study run "$name" "$@" "${options[@]}"
}

small_cnn=(--model-option channels=64,128,256,512)
rates=(--vary lr=1e-2,1e-3,1e-4)

study logistic-lr
study logistic-batch-size
study logistic-optimizer
study mlp-lr-batch-size --vary lr=1e-2,1e-3,1e-4,1e-5 --vary batch_size=32,128,256 --epochs 10
study mlp-hidden
study mobilenetv2-lr-batch-size "${rates[@]}" --vary batch_size=32,128,256 --epochs 5
study mobilenetv2-freeze --epochs 5
study cnn-lr-batch-size "${rates[@]}" --vary batch_size=32,128 --epochs 4 "${small_cnn[@]}"
study cnn-dropout --vary dropout=0,0.2,0.5 --epochs 8 "${small_cnn[@]}"

echo "== the report's table"
if $reduced; then
  stl10bench benchmark logistic mlp mobilenetv2 --recipe report --epochs 5 "${options[@]}"
else
  stl10bench benchmark --all --recipe report "${options[@]}"
fi

echo "== summary of the studies"
stl10bench study list --runs-dir "$runs_dir"
