#!/usr/bin/env bash
# Where each microsecond of a job goes on a real node, as the table of docs/performance.md.
#
#   tools/profile.sh                         32 producers x 64 enqueue
#   tools/profile.sh --consumers 32          whole lives; the arguments are those of `rrq-bench load`
#
# `rrq-bench load` starts a node and loads it; perf samples the node alone for six seconds. A sample
# belongs to the part of the source in which it was taken, seen through inlined functions; in the
# kernel, to what the call was about. The shares are then of the node's CPU time a job, as
# `rrq-bench` measured it. Needs perf, binutils, and the right to sample (root, or
# kernel.perf_event_paranoid <= 1).
set -euo pipefail
cd "$(dirname "$0")/.."

for tool in perf addr2line readelf; do
    command -v "$tool" >/dev/null || { echo "there is no $tool" >&2 && exit 1; }
done
# With lines, which a release does not have.
export CARGO_PROFILE_RELEASE_DEBUG=line-tables-only
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/profile"
cargo build --release --bin rrq-node --bin rrq-bench
target="$CARGO_TARGET_DIR/release"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$target/rrq-bench" load --duration 14s --json "$work/load.json" "$@" &
bench=$!
sleep 4
# rrq-node, or rrq-bench again where that is of another build.
node=$(pgrep -P "$bench" | head -1)
program=$(readlink "/proc/$node/exe")
perf record --quiet -F 1999 -g -p "$node" -o "$work/perf" -- sleep 6 2>/dev/null
wait "$bench"

# A line a sample: kernel functions, or the address in the program, or another function.
perf script -i "$work/perf" -F ip,sym,dso 2>/dev/null | awk -v program="($program)" '
    /^$/ { if (seen) print line; seen = 0; line = ""; next }
    { kernel = index($0, "[kernel") > 0 }
    !seen { seen = 1
        if (kernel) line = "K " $2
        else if (index($0, program)) line = "P 0x" $1
        else line = "L " $2
        inside = kernel; next }
    inside && kernel { line = line " " $2; next }
    { inside = 0 }
    END { if (seen) print line }' >"$work/samples"

# perf tells where in the file, addr2line wants to know where in memory.
awk '/^P/ { print $2 }' "$work/samples" | sort -u >"$work/places"
read -r _ offset memory _ < <(readelf -lW "$program" | grep 'LOAD.* R E ')
while read -r place; do
    printf '0x%x\n' $((place - offset + memory))
done <"$work/places" >"$work/addresses"
# A line that begins with the address, then function and file of each inlined level, innermost first.
addr2line -a -f -i -C -e "$program" <"$work/addresses" >"$work/lines"

awk -v lines="$work/lines" -v places="$work/places" -v us="$(sed -n 's/.*"server_cpu_us_per_job": *\([0-9.]*\).*/\1/p' "$work/load.json" | head -1)" '
    function of_kernel(chain) {
        if (chain ~ /tcp_|inet_|sock_|net_rx|skb|__napi|loopback/) return "kernel: network"
        if (chain ~ /ext4|xfs_|iomap|blk_|bio_|virtblk|virtio_queue_rq|blkdev/) return "kernel: disk"
        if (chain ~ /page_fault|do_anonymous_page|mmap|madvise|munmap/) return "kernel: memory"
        if (chain ~ /io_uring|io_/) return "kernel: io_uring"
        return "kernel: other"
    }
    # The part that a level of a sample is of; nothing if it is of none, as a function of the
    # standard library is.
    function of_level(name, file) {
        if (name ~ /^_?mi_|Allocator|raw_vec::RawVecInner|__rust_(de|re)?alloc/) return "allocator"
        if (name ~ /^bytes::/) return "memory: buffers"
        if (name ~ /crc32c/) return "checksums"
        if (name ~ /blake3/) return "checkpoint"
        if (file ~ /src\/wire\/(hot\/writer|client\/reply)\.rs/)
            return (name ~ /command|call|op_len|new_job|ack_item/) ? "propose: encode, raft" : "reply: encode"
        if (file ~ /src\/wire\/command\.rs/)
            return (name ~ /from_pb|decode/) ? "request: frame, decode" : "propose: encode, raft"
        if (file ~ /src\/wire\//) return "request: frame, decode"
        if (file ~ /src\/raft\//) return "propose: encode, raft"
        if (file ~ /src\/base\/entry\.rs/) return "propose: encode, raft"
        if (file ~ /src\/wal\//) return "log: append, seal"
        if (file ~ /src\/(snapshot\/|shard\/checkpoint\.rs|queue\/(frozen|page|body)\.rs)/) return "checkpoint"
        if (file ~ /src\/queue\/(sessions|outcomes?)\.rs/) return "apply: session"
        if (file ~ /src\/queue\//) return "apply: jobs"
        if (file ~ /src\/shard\//) return "engine: admit, wait, answer"
        if (file ~ /src\/runtime\// || name ~ /^prometheus/) return "runtime: connections, disk"
        if (file ~ /glommio/ || name ~ /glommio|uring|buddy_alloc/) return "runtime: executor"
        return ""
    }
    function of_library(name) {
        if (name ~ /memcpy|memmove|memset|memcmp|bcmp/) return "memory: copy, compare"
        return "other"
    }
    BEGIN {
        while ((getline line < lines) > 0) {
            if (line ~ /^0x/) {
                getline address < places
                continue
            }
            name = line
            getline file < lines
            if (part[address] == "") part[address] = of_level(name, file)
            # What the standard library does with a type of ours is of that type.
            if (part[address] == "" && match(name, /rrq::[a-z]+::[a-z]+/)) {
                path = substr(name, RSTART + 5, RLENGTH - 5)
                sub(/::/, "/", path)
                part[address] = of_level("", "src/" path ".rs")
            }
            names[address] = names[address] " " name
        }
    }
    { total++ }
    $1 == "K" { sum[of_kernel($0)]++; next }
    $1 == "L" { sum[of_library($2)]++; next }
    {
        found = part[$2]
        if (found == "") found = names[$2] ~ /btree/ ? "maps, not told whose" : "other"
        sum[found]++
        if (found == "other") unknown[names[$2]]++
    }
    END {
        print "| part | % | us a job |"
        print "| --- | ---: | ---: |"
        for (name in sum)
            printf "| %s | %.1f | %.2f |\n", name, 100 * sum[name] / total, us * sum[name] / total | "sort -t\\| -k3 -rn"
        close("sort -t\\| -k3 -rn")
        printf "| all | 100 | %.2f |\n", us
        if (ENVIRON["UNKNOWN"] != "") for (name in unknown) if (unknown[name] > total / 1000) print unknown[name], name
    }' "$work/samples"
