#!/bin/bash
# Trains a list of images on many GPUs, one shard per task of a Slurm array:
#
#     sbatch --array=1-8 slurm.sh pictures.csv --style ink
#
# Everything after the list is passed on to train. Submit the same line again to continue: finished projects
# are skipped, unfinished ones resumed. Before the first run, download the base where the nodes can read it:
#
#     unziplora models pull sdxl
#
#SBATCH --job-name=unziplora
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --output=unziplora-%A-%a.log

set -euo pipefail

list=${1:?usage: sbatch --array=1-N slurm.sh LIST [OPTION...]}
shift

# Arrays may begin with 0 or 1; shards are counted from 1.
shard=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))/$SLURM_ARRAY_TASK_COUNT

# Slurm signals the script two minutes before the time limit: the training then keeps what it learned and ends.
stopped=
trap 'stopped=yes; kill -TERM $!' TERM
unziplora --offline train --list "$list" --shard "$shard" "$@" &
status=0
wait $! || status=$?
if [ -n "$stopped" ]; then # the signal may have ended the wait before the training
    last=0
    wait $! || last=$?
    [ "$last" = 127 ] || status=$last
fi
exit "$status"
