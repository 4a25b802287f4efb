#!/usr/bin/env bash
#SBATCH --job-name=diffusion-reward
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=diffusion-reward-%j.log
# One training on a Ray cluster of this job alone. Submit it from the root of the checkout, on storage that all nodes see:
#
#   sbatch launch/cluster/slurm.sh /shared/runs/first task=door-close reward=diffusion \
#       reward.checkpoint=/shared/checkpoints/video/door-close preset=gpu cluster=multi_node
#
# The reward model is one of `preset=gpu` (README, "One GPU and many cores").
# Three minutes before its time is over Slurm sends USR1 (--signal), and before a preemption where the site has
# PreemptParameters=send_user_signal: the run writes its last checkpoint, the job goes back into the queue and goes on
# from there. To stop it for good, with a last checkpoint: scancel --signal=TERM --batch <job>.
# Without GPUs: sbatch --gpus-per-node=0 and preset=laptop or paper, cluster=local.
# VENV names the virtual environment (default .venv), HEAD_IP an address of the first node that the others reach.
# To look at the dashboard: ssh -L 8265:127.0.0.1:8265 <first node>, with the token that the log names. Ray's own logs stay
# in /tmp/ray-<job> of each node.
set -euo pipefail

run=${1:?usage: sbatch launch/cluster/slurm.sh <run folder> [key=value ...]}
shift
cd "$SLURM_SUBMIT_DIR"
# shellcheck source=/dev/null
source "${VENV:-.venv}/bin/activate"

# Ray runs code for whoever reaches its ports, and every user of the site reaches them: a token of this job alone, in a
# file that only its owner can read and that all nodes see. Ray takes it from the path, so it is in no list of processes.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/slurm_$SLURM_JOB_ID"
(umask 077 && mkdir -p "$HOME/.ray" && python -c "import secrets; print(secrets.token_hex(32))" >"$RAY_AUTH_TOKEN_PATH")
echo "token: $RAY_AUTH_TOKEN_PATH"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=6379
head_ip=${HEAD_IP:-$(hostname -I | cut -d' ' -f1)} # This script runs on the first node.
driver=
requeue=

# Runs `ray start` on some of the nodes until the job is over: ray_on <number of nodes> <their names> [option ...]
ray_on() {
    srun --nodes="$1" --ntasks="$1" --nodelist="$2" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
        ray start --block --num-cpus="$SLURM_CPUS_PER_TASK" "${@:3}" &
}

# A stop by signal ends `wait` before the driver has ended: waits until it has, and returns its exit code.
wait_for_driver() {
    local code=0
    wait "$driver" || code=$?
    while kill -0 "$driver" 2>/dev/null; do
        code=0
        wait "$driver" || code=$?
    done
    return "$code"
}

clean_up() {
    local steps
    mapfile -t steps < <(jobs -p)
    [ "${#steps[@]}" = 0 ] || kill "${steps[@]}" 2>/dev/null || true
    wait
    rm -f "$RAY_AUTH_TOKEN_PATH"
}

trap clean_up EXIT
trap '[ -z "$driver" ] || kill -TERM "$driver"' TERM
trap 'requeue=yes; [ -z "$driver" ] || kill -TERM "$driver"' USR1

# The dashboard, where jobs are submitted, on loopback: this job submits none.
ray_on 1 "${nodes[0]}" --head --node-ip-address="$head_ip" --port="$port" --dashboard-host=127.0.0.1 \
    --temp-dir="/tmp/ray-$SLURM_JOB_ID"
python launch/cluster/wait_for_nodes.py "$head_ip:$port" 1 # A worker gives up when there is no head.
if [ "${#nodes[@]}" -gt 1 ]; then
    ray_on "$((${#nodes[@]} - 1))" "$(IFS=,; echo "${nodes[*]:1}")" --address="$head_ip:$port"
    # Nodes that come later would be used as well (cluster=multi_node); waiting lets shards and rollouts spread from the start.
    python launch/cluster/wait_for_nodes.py "$head_ip:$port" "${#nodes[@]}"
fi

bash launch/cluster/train_or_resume.sh "$run" "$@" cluster.address="$head_ip:$port" &
driver=$!
wait_for_driver
if [ -n "$requeue" ]; then
    clean_up
    trap - EXIT
    scontrol requeue "$SLURM_JOB_ID"
fi
