#!/bin/bash
# BEiT-B on two nodes of eight GPUs: sbatch examples/slurm.sh photos/ runs/tok runs/pre [more options of beitkit pretrain]
# It continues by itself: USR1 arrives five minutes before the time is up, the run saves, and the job puts itself into the queue again.
# Not run by the project's tests, which have no SLURM; run by hand on one machine (docs/guide/deploy.md).
#SBATCH --job-name=beitkit
#SBATCH --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12
#SBATCH --time=24:00:00 --signal=USR1@300
#SBATCH --requeue --open-mode=append --output=beitkit-%j.log
set -u
images=$1 tokenizer=$2 out=$3
shift 3
code=0
srun --kill-on-bad-exit=1 beitkit pretrain "$images" --tokenizer "$tokenizer" --out "$out" --batch-size 128 "$@" || code=$?
# 128 + 10: stopped by USR1 after saving. The same command continues the run.
if [ "$code" -eq 138 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
