#!/usr/bin/env bash
# A new user's walk, from drawn data to a model that runs without this program.
#
#   tests/cli/walk.sh [FOLDER]      in FOLDER (default: a new one that is removed at the end)
#
# stl10bench must be on the PATH (make install; . .venv/bin/activate). Every command is held to the
# time that its own --help states ("Under N s"), and to the file that it says it has written.
set -euo pipefail

if [ $# -gt 0 ]; then
  mkdir -p "$1"
  folder=$(cd "$1" && pwd)
else
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
fi
cd "$folder"
summary=()

# step "NAME OF THE COMMAND" ARGUMENTS...: run it, and fail where it is slower than its help says.
step() {
  local words stated began seconds
  read -ra words <<< "$1"
  shift
  stated=$(stl10bench "${words[@]}" --help | tr '\n' ' ' | grep -oE 'Under [0-9]+ s' | grep -oE '[0-9]+') || {
    echo "stl10bench ${words[*]} --help states no time (Under N s)" >&2
    exit 1
  }
  echo "\$ stl10bench ${words[*]} $*" >&2
  began=$(date +%s.%N)
  stl10bench "${words[@]}" "$@"
  seconds=$(awk "BEGIN { printf \"%.1f\", $(date +%s.%N) - $began }")
  summary+=("$(printf '%6s s  under %3s s  stl10bench %s' "$seconds" "$stated" "${words[*]}")")
  if ! awk "BEGIN { exit !($seconds <= $stated) }"; then
    echo "stl10bench ${words[*]} took $seconds s, its help says under $stated s" >&2
    exit 1
  fi
}

# written FILE BEGINNING: FILE is there and begins as files of its kind do.
written() {
  test -s "$1" || { echo "$1 was not written" >&2; exit 1; }
  head -c 512 "$1" | grep -aq "$2" || { echo "$1 does not begin with $2" >&2; exit 1; }
}

demo=(--dataset demo --data-dir data)

step "data make-demo" --data-dir data --train 500 --test 200
written data/demo/stl10_binary/class_names.txt .

step "visualize samples" "${demo[@]}" --output samples.png
written samples.png PNG

step "lr-find" logistic "${demo[@]}" --image-size 32 --steps 50 --output rates.png
written rates.png PNG

step "train" logistic "${demo[@]}" --recipe quick --epochs 5 --tracker none
run=$(cd runs && echo logistic-*)
written "runs/$run/result.json" '{'

step "plot" "$run" --output curves.png
written curves.png PNG

step "report" --data-dir data --output report.html
written report.html '<!doctype html>'

python - <<'PYTHON'  # a photo of another size and shape than the data
import numpy as np
from PIL import Image

shades = np.linspace(0, 255, 320 * 240 * 3).reshape(240, 320, 3)
Image.fromarray(shades.astype("uint8")).save("photo.png")
PYTHON
step "predict" "runs/$run/best.safetensors" photo.png --json > predicted.json
cat predicted.json

step "export" "runs/$run/best.safetensors" --to torch --output model.pt2
written model.pt2 PK

# Elsewhere: a folder of its own, where nothing but torch, numpy and Pillow is imported.
mkdir -p elsewhere
cp model.pt2 photo.png predicted.json elsewhere
cd elsewhere
python -W ignore - <<'PYTHON'
import json
import sys

import numpy as np
import torch
from PIL import Image

model = torch.export.load("model.pt2").module()
photo = np.asarray(Image.open("photo.png"))
side = min(photo.shape[:2])
top, left = ((length - side) // 2 for length in photo.shape[:2])
square = Image.fromarray(photo[top : top + side, left : left + side])
pixels = np.asarray(square.resize((96, 96), Image.Resampling.BICUBIC))
images = torch.tensor(pixels.copy()).permute(2, 0, 1)[None]
with torch.no_grad():
    probabilities = model(images).softmax(1)[0]
best = json.load(open("predicted.json"))["images"][0]["predictions"][0]
print(f"elsewhere: the likeliest class has p = {float(probabilities.max()):.3f}")
assert "stl10bench" not in sys.modules
assert abs(float(probabilities.max()) - best["probability"]) < 0.02, (probabilities, best)
PYTHON

echo
printf '%s\n' "${summary[@]}"
