#!/usr/bin/env bash
# Runs the fuzz targets one after the other and says how far each came.
#
#   tools/fuzz.sh [SECONDS [TARGET...]]         60 seconds for each target, or for these alone
#   tools/fuzz.sh --runs N [TARGET...]          N executions of each, without a trace of comparisons:
#                                               twice as fast, from what other runs have found
#
# Needs a nightly toolchain and cargo-fuzz (cargo install cargo-fuzz --locked). What a run finds of
# interest is kept in fuzz/target/fuzz/corpus/ (or under CARGO_TARGET_DIR) and the next run starts
# from it and from fuzz/corpus/. Stops at the first failure with the input's path: fix the cause, add a
# named test beside the code, and put the input into fuzz/corpus/, which tests/fuzz_bodies.rs reads.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    sed -n 's/^# \{3\}\(tools.*\)/usage: \1/p' "tools/fuzz.sh" >&2
    exit 2
}
bound=(-max_total_time=60)
fast=()
if [[ ${1:-} == --runs ]]; then
    [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || usage
    bound=(-runs="$2")
    fast=(--no-trace-compares)
    shift 2
elif (($# > 0)); then
    [[ $1 =~ ^[1-9][0-9]*$ ]] || usage
    bound=(-max_total_time="$1")
    shift
fi
# People write little, and a segment's chunks are short without their padding: the fuzzer would only
# make long garbage of them.
declare -rA max_len=([config]=512 [jobs_file]=1024 [log_segment]=2048)
cd fuzz
readonly target_dir=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
if ! cargo +nightly fuzz --version >/dev/null 2>&1; then
    echo "error: this needs cargo-fuzz and a nightly toolchain" >&2
    exit 2
fi
# A body takes and frees its megabytes all over again: glibc shall keep them.
export MALLOC_MMAP_THRESHOLD_=$((1 << 30)) MALLOC_TRIM_THRESHOLD_=$((1 << 30))
export MALLOC_TOP_PAD_=$((16 << 20))
# There is no `unsafe` in what is fuzzed, so that a sanitizer would only cost speed.
readonly build=(--fuzz-dir . --sanitizer none --target-dir "$target_dir" "${fast[@]}")
cargo +nightly fuzz build "${build[@]}"

if (($# == 0)); then
    mapfile -t targets < <(cargo +nightly fuzz list --fuzz-dir .)
    set -- "${targets[@]}"
fi
printf '%-16s %14s %10s %8s %8s\n' target executions per_second edges inputs
for target in "$@"; do
    begun=$SECONDS
    corpus=$target_dir/corpus/$target
    log=$target_dir/$target.log
    mkdir -p "$corpus" "artifacts/$target"
    if ! cargo +nightly fuzz run "${build[@]}" "$target" "$corpus" "corpus/$target" -- \
        "${bound[@]}" -max_len="${max_len[$target]:-8192}" -timeout=10 -rss_limit_mb=1024 \
        -print_final_stats=1 >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        echo "error: $target fails; the input is in fuzz/artifacts/$target/" >&2
        exit 1
    fi
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    read -r edges inputs < <(sed -n \
        's/^#[0-9]*\tDONE *cov: \([0-9]*\) .* corp: \([0-9]*\)\/.*/\1 \2/p' "$log")
    printf '%-16s %14s %10s %8s %8s\n' \
        "$target" "$executions" "$((executions / (SECONDS > begun ? SECONDS - begun : 1)))" "$edges" "$inputs"
done
