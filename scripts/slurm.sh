#!/usr/bin/env bash
# One run as a SLURM job that may be preempted: sbatch scripts/slurm.sh mobilenetv2 --no-freeze
# A minute and a half before its end SLURM sends SIGTERM; the run saves, leaves with 143, and the
# job is put back into the queue, where it goes on with the same bits. Untested on a real cluster.
#SBATCH --job-name=stl10bench
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=01:00:00
#SBATCH --signal=TERM@90
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

# Without `srun` the signal would reach this shell alone. The runs must be on a shared disk.
srun stl10bench train "$@" --checkpoint-minutes 5
code=$?
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
