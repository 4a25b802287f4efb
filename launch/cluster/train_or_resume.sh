#!/usr/bin/env bash
# Starts a run, or goes on with it where it exists: schedulers run the same command again after they took a node away.
# usage: train_or_resume.sh <run folder> [key=value ...]     PYTHON=<interpreter>, default python
set -euo pipefail
run=$1
shift
cd "$(dirname "$0")/../.."
if [ -e "$run/config.yaml" ]; then
    exec "${PYTHON:-python}" launch/train.py "$@" resume="$run"
fi
exec "${PYTHON:-python}" launch/train.py "$@" out="$run"
