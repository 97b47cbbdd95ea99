#!/usr/bin/env bash
# One run on several nodes of a SLURM cluster:
#
#     sbatch --nodes=4 --cpus-per-task=32 --gpus-per-node=1 scripts/cluster/slurm.sh SCENARIO.toml RUN_FOLDER [key=value …]
#
# Further words are values for `--set`, e.g. seed=2. Where RUN_FOLDER holds a run already, as after a time limit or a
# lost head node, it is resumed. The run folder has to be on a disk that outlives the nodes; the first node alone
# reads the data ($FEDKD_DATA) and the plug-ins. Every node needs the same environment: set FEDKD_ENV to its folder.
#SBATCH --job-name=fedkd
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --no-kill
set -euo pipefail
scenario=${1:?usage: sbatch [options] slurm.sh SCENARIO.toml RUN_FOLDER [key=value …]}
folder=${2:?usage: sbatch [options] slurm.sh SCENARIO.toml RUN_FOLDER [key=value …]}
shift 2
if [ -n "${FEDKD_ENV:-}" ]; then source "$FEDKD_ENV/bin/activate"; fi

# A port, and a folder for Ray's sockets, of this job's own. Their paths have to be short. A node is for one job alone
# (--exclusive): `ray symmetric-run` starts on none on which Ray runs, and in the end stops all of this user's.
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes%%$'\n'*}  # no pipe: one that is closed early would end a script that stops at errors
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID"
mkdir -m 700 -p "$RAY_TMPDIR"

# Whoever reaches Ray's ports can run code as this user: none without the token. The environment carries it to the nodes.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

if [ -e "$folder/scenario.toml" ]; then
    words=(fedkd resume "$folder")
else
    words=(fedkd run "$scenario" --out "$folder" --set engine.kind=ray engine.address=auto "$@")
fi
cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
options=(--num-cpus="$cpus" --include-dashboard=false)
if [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then options+=(--num-gpus="$SLURM_GPUS_ON_NODE"); fi

# A node that dies takes neither the others nor the job along. "auto" is whatever RAY_ADDRESS says: a run that is
# resumed elsewhere has another head.
exec srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --cpus-per-task="$cpus" \
    --kill-on-bad-exit=0 --no-kill \
    ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" "${options[@]}" \
    -- env RAY_ADDRESS="$head:$port" "${words[@]}"
