#!/usr/bin/env bash
# One run as a SLURM job that may be preempted: sbatch scripts/slurm.sh mobilenetv2 --no-freeze
# SLURM sends SIGTERM 90 seconds before the end. The run saves a checkpoint and exits with 143; the
# job is requeued and resumes with bitwise equal results. Not tested on a real cluster.
#SBATCH --job-name=stl10bench
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=01:00:00
#SBATCH --signal=TERM@90
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

# `srun`, because without it only this shell receives the signal. Runs must lie on a shared disk.
srun stl10bench train "$@" --checkpoint-minutes 5
code=$?
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
