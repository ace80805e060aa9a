#!/usr/bin/env bash
# What an operation of the benches costs, as the table of docs/performance.md: nanoseconds as the
# last `cargo bench` found them, and instructions counted by valgrind's callgrind.
#
#   tools/instructions.sh                    all benches
#   tools/instructions.sh engine_step        this one
#   tools/instructions.sh engine_step enqueue    its operations whose names have this text
#
# Instructions: each operation runs twice under callgrind, half of its steps and all of them; the
# difference, divided by the operations in it, has neither the program's start nor the making of
# what is worked on. It is repeatable to about 1 %, also on a crowded machine. Needs valgrind.
set -euo pipefail
cd "$(dirname "$0")/.."

subject="${1:-}"
wanted="${2:-}"
target="${CARGO_TARGET_DIR:-target}"
command -v valgrind >/dev/null || {
    echo "there is no valgrind: install it (Debian: apt-get install valgrind)" >&2
    exit 1
}

# Executable benches/NAME.rs (PROGRAM)
programs=$(cargo bench --no-run ${subject:+--bench "$subject"} 2>&1 | tee /dev/stderr |
    sed -n 's|^ *Executable benches/\(.*\)\.rs (\(.*\))$|\1 \2|p')

# Instructions of a program up to its end.
count() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$@" 2>&1 >/dev/null |
        sed -n 's/^.*Collected : \([0-9]*\).*$/\1/p'
}

# The median that criterion kept of an operation, in nanoseconds.
nanoseconds() {
    local kept="$target/criterion/$1/$2/new/estimates.json"
    [[ -f "$kept" ]] || { echo "-" && return; }
    sed 's/.*"median":{[^}]*},"point_estimate":\([0-9.]*\).*/\1/' "$kept" |
        awk '{ printf $1 < 100 ? "%.1f" : "%.0f", $1 }'
}

while read -r subject program; do
    echo
    echo "| $subject | ns | instructions |"
    echo "| --- | ---: | ---: |"
    while IFS=$'\t' read -r operation times; do
        [[ "$operation" == *"$wanted"* ]] || continue
        half=$(count "$program" --instructions "$operation" half)
        all=$(count "$program" --instructions "$operation" all)
        echo "| $operation | $(nanoseconds "$subject" "$operation") | $(((all - half) / times)) |"
    done < <("$program" --instructions)
done <<<"$programs"
