#!/usr/bin/env bash
# Soaks a cluster of three nodes: they are killed, frozen, stopped and lose their disks under load, and every
# job is accounted for at the end.
#
#   tools/soak-cluster.sh [--seconds N] [--seed N]     half an hour, or so long; and then half as long with a
#                                                      network that is cut between them
#
# tests/cluster_soak/main.rs tells what is done and what is held against what; CI runs a minute and a half of it. The
# seed of the draws is told; the same one draws the same troubles again.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=1800
while (($# > 0)); do
    if [[ $# -ge 2 && $1 == --seconds && $2 =~ ^[1-9][0-9]*$ ]]; then
        seconds=$2
    elif [[ $# -ge 2 && $1 == --seed && $2 =~ ^[0-9]+$ ]]; then
        export RRQ_SOAK_SEED=$2
    else
        echo "usage: tools/soak-cluster.sh [--seconds N] [--seed N]" >&2
        exit 2
    fi
    shift 2
done
export RRQ_SOAK_SECONDS=$seconds
exec cargo test --locked --release --test cluster_soak -- --nocapture
