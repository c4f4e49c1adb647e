#!/usr/bin/env bash
# Check on a CUDA machine all that a GPU changes: five rows in bf16 and fp16, --compile, resume,
# images/s beside the bare step and the peers, memory, two processes where there are two GPUs.
#
#   scripts/gpu_check.sh [PART]... [--data-dir DIR] [--weights FILE] [--json FILE]
#   scripts/gpu_check.sh --device cpu --reduced      # rehearse it: five minutes on two cores
#
# Writes gpu_check.json and prints a table with the card's name. Needs the package installed; without
# --data-dir it takes demo data, without --weights random ones. Nothing else may use the GPU.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$here/../.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$here/speed.py" gpu "$@"
