#!/usr/bin/env bash
# Soaks a node under four hogs, stops and a quota, and fails if a task of a shard was left lying for
# over 100 ms although it could run.
#
#   tools/soak.sh [--seconds N]     half an hour, or so long
#
# tests/soak/main.rs tells what is done and how it is measured; CI runs a minute of it. As root the
# quota is a control group's (cpu), else it is made by stopping and continuing the node. Other work on
# the machine does no harm: what a thread waits for a core is subtracted.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=1800
if [[ $# == 2 && $1 == --seconds && $2 =~ ^[1-9][0-9]*$ ]]; then
    seconds=$2
elif (($# > 0)); then
    echo "usage: tools/soak.sh [--seconds N]" >&2
    exit 2
fi
export RRQ_SOAK_SECONDS=$seconds
exec cargo test --locked --release --test soak -- --nocapture
