#!/usr/bin/env bash
# Reproduce the course report: its nine ablations, its table of five models, and the document.
#
#   scripts/reproduce_report.sh [--reduced | --quick] [--dry-run] [--title T] [--author A] [OPTION...]
#
# Every OPTION goes to both `study run` and `benchmark`: --data-dir DIR, --weights FILE,
# --runs-dir DIR, --tracker none, ... Run the same command again to resume: finished runs are
# skipped. To use other machines, give --scheduler ADDRESS: a Dask scheduler with workers on them.
# The full report needs a GPU. --reduced takes fewer values, fewer epochs and a CNN with fewer
# channels: hours on two cores. --quick takes corners of the grids, one seed and a narrow CNN:
# under half an hour on two cores. The document says what was reduced. --dry-run says how long it
# will take. Rankings and figures are in RUNS_DIR/studies/NAME, the document in study.html.
set -euo pipefail

form=full
dry=false
runs_dir=runs
options=()
heading=()
pictures=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit ;;
    --reduced | --quick) form=${1#--} ;;
    --dry-run) dry=true ;;
    --runs-dir=*) runs_dir=${1#*=} ;;
    --runs-dir) runs_dir=${2:?--runs-dir needs a folder}; shift ;;
    --title | --author) heading+=("$1" "${2:?$1 needs a text}"); shift ;;
    --data-dir=*) pictures=("$1"); options+=("$1") ;;
    --data-dir) pictures=("$1" "${2:?--data-dir needs a folder}"); options+=("${pictures[@]}"); shift ;;
    *) options+=("$1") ;;
  esac
  shift
done
options+=(--runs-dir "$runs_dir")

commands=()
run() { # a command of stl10bench; of a dry run it is kept for the forecast
  if $dry; then
    commands+=("$(printf '%q ' "$@")")
  else
    echo "== $*"
    stl10bench "$@"
  fi
}
study() { # NAME, -- and the options of the reduced form, -- and those of the quick one
  local name=$1 of=full
  local -a full=() reduced=() quick=()
  shift
  for word in "$@"; do
    case $word in
      reduced: | quick:) of=${word%:} ;;
      *) if [ $of = reduced ]; then reduced+=("$word"); else quick+=("$word"); fi ;;
    esac
  done
  local -n chosen=$form
  run study run "$name" "${chosen[@]}" "${options[@]}"
}

narrow=(--model-option channels=64,128,256,512)
narrower=(--model-option channels=32,64,64,128)
rates=(--vary lr=1e-2,1e-3,1e-4)
one=(--seeds 1)

study logistic-lr quick: "${one[@]}"
study logistic-batch-size quick: "${one[@]}"
study logistic-optimizer quick: "${one[@]}"
study mlp-lr-batch-size \
  reduced: --vary lr=1e-2,1e-3,1e-4,1e-5 --vary batch_size=32,128,256 --epochs 10 \
  quick: "${rates[@]}" --vary batch_size=32,128 --epochs 10 "${one[@]}"
study mlp-hidden quick: --epochs 10 "${one[@]}"
study cnn-lr-batch-size \
  reduced: "${rates[@]}" --vary batch_size=32,128 --epochs 4 "${narrow[@]}" \
  quick: "${rates[@]}" --vary batch_size=32,128 --epochs 4 "${narrower[@]}" "${one[@]}"
study cnn-dropout \
  reduced: --vary dropout=0,0.2,0.5 --epochs 8 "${narrow[@]}" \
  quick: --vary dropout=0,0.2,0.5 --epochs 8 "${narrower[@]}" "${one[@]}"
study mobilenetv2-lr-batch-size \
  reduced: "${rates[@]}" --vary batch_size=32,128,256 --epochs 5 \
  quick: "${rates[@]}" --vary batch_size=32,128 --epochs 4 "${one[@]}"
study mobilenetv2-freeze reduced: --epochs 5 quick: --epochs 4 "${one[@]}"

case $form in
  full) run benchmark --all --recipe report "${options[@]}" ;;
  reduced) run benchmark --all --recipe report --epochs 8 "${narrow[@]}" "${options[@]}" ;;
  quick) run benchmark --all --recipe report --epochs 8 "${narrower[@]}" "${options[@]}" ;;
esac

if $dry; then
  printf '%s\n' "${commands[@]}" | python "$(dirname "$0")/forecast.py"
  exit
fi
echo "== the document"
stl10bench report --template study --runs-dir "$runs_dir" "${pictures[@]}" "${heading[@]}"
