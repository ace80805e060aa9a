#!/usr/bin/env bash
# rrq and its rivals under the same load, one after the other, on this machine.
#
#   tools/compare/run.sh [OPTIONS]
#
#   --install           install the rivals first (tools/compare/install.sh)
#   --duration SECONDS  measured in each run, after 2 s of load        [default: 10]
#   --runs N            runs of each cell, of which the median counts  [default: 3]
#   --systems LIST      of rrq,redis,redis-unsynced,rabbitmq,nats,beanstalkd   [default: all]
#   --rows LIST         of enqueue-8,batch-8,enqueue-1,life-8,life-1           [default: all]
#   --out DIR           figures as JSON, and the table                 [default: target/compare/out]
#   --data DIR          where the servers keep their data, on a real file system
#                                                                [default: under target/compare]
#
# RRQ_BENCH names the rrq-bench to measure with [default: target/release/rrq-bench]. A rival's
# program is taken from the root that install.sh makes, then from the PATH; one that is not there is
# named and left out. CARGO_TARGET_DIR is obeyed. Servers listen on 127.0.0.1 alone, begin each run
# empty, and are ended by their process ids at the end of the run, however it ends.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

readonly CONNECTIONS=32 WINDOW=64 PAYLOAD=256 BATCH=64
readonly ALL_SYSTEMS=rrq,redis,redis-unsynced,rabbitmq,nats,beanstalkd
readonly ALL_ROWS=enqueue-8,batch-8,enqueue-1,life-8,life-1
# The folder below --data that is emptied before and after each run.
readonly OWN=rrq-compare-server
readonly PORT=17611 EPMD_PORT=17612 DIST_PORT=17613

target=${CARGO_TARGET_DIR:-$PWD/target}
work=$target/compare
root=$work/root
bench=${RRQ_BENCH:-$target/release/rrq-bench}
readonly here target work root bench
duration=10 runs=3 systems=$ALL_SYSTEMS rows=$ALL_ROWS out=$work/out data="" install=0

fail() {
    echo "error: $1" >&2
    echo "  fix: $2" >&2
    exit 2
}

while (($# > 0)); do
    if [[ $1 != --install && $1 != --help && $1 != -h && $# -lt 2 ]]; then
        fail "$1 needs a value" "see $0 --help"
    fi
    case $1 in
        --install) install=1 ;;
        --duration) duration=$2 && shift ;;
        --runs) runs=$2 && shift ;;
        --systems) systems=$2 && shift ;;
        --rows) rows=$2 && shift ;;
        --out) out=$2 && shift ;;
        --data) data=$2 && shift ;;
        --help | -h) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$here/run.sh" && exit ;;
        *) fail "there is no option $1" "see $0 --help" ;;
    esac
    shift
done
[[ $duration =~ ^[1-9][0-9]*$ ]] || fail "--duration is not a number of seconds: $duration" "10"
[[ $runs =~ ^[1-9][0-9]*$ ]] || fail "--runs is not a number: $runs" "3"
among() {
    local word
    for word in ${1//,/ }; do
        [[ ,$2, == *,"$word",* ]] || fail "there is no $word in $3" "some of $2"
    done
}
among "$systems" "$ALL_SYSTEMS" --systems
among "$rows" "$ALL_ROWS" --rows
((install == 0)) || "$here/install.sh"

# The rivals in install.sh's root have their data there, where chroot lets them see it.
rooted=0
if [[ -d $root ]]; then
    [[ $(id -u) == 0 ]] ||
        fail "the rivals are in $root, which only root can enter" \
            "run this as root, or remove it to use what is on the PATH"
    [[ -z $data ]] || fail "--data is for programs on the PATH" "without --data, or without $root"
    rooted=1
    data=$root/var/lib/compare
fi
data=${data:-$work/data}
mkdir -p "$out" "$data"
file_system=$(stat -f -c %T "$data")
case $file_system in
    tmpfs | ramfs) fail "$data is on $file_system, where nothing is synced" "--data on a real disk" ;;
esac

# --- programs ---

# Where a program is, in the root's own words if there is a root; nothing if it is nowhere.
program() {
    local name=$1 folder
    if [[ $name == nats-server && -x $work/venv/bin/nats-server ]]; then
        echo "$work/venv/bin/nats-server"
    elif ((rooted)); then
        for folder in /usr/lib/rabbitmq/bin /usr/bin /usr/sbin; do
            [[ ! -x $root$folder/$name ]] || { echo "$folder/$name" && return; }
        done
    elif [[ $name == rabbitmq-server && -x /usr/lib/rabbitmq/bin/$name ]]; then
        echo "/usr/lib/rabbitmq/bin/$name" # not the wrapper that changes the user
    else
        command -v "$name" || true
    fi
}

# Becomes a program: in the root with a /proc that goes with it, else here.
become() {
    if ((rooted)) && [[ $1 != "$work"/* ]]; then
        # shellcheck disable=SC2016
        exec unshare --mount sh -c 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"' "$root" "$@"
    fi
    exec "$@"
}

# A path below the data folder as the program sees it.
seen() {
    if ((rooted)) && [[ $1 != "$work"/venv/* ]]; then echo "${2#"$root"}"; else echo "$2"; fi
}

version() {
    local path
    path=$(program "$1")
    case $1 in
        redis-server) (become "$path" --version) | sed 's/.* v=\([^ ]*\).*/Redis \1/' ;;
        rabbitmq-server)
            local folder=${path%/bin/*}/lib/rabbitmq_server-
            ((rooted)) && folder=$root$folder
            folder=$(compgen -G "$folder*")
            echo "RabbitMQ ${folder##*-}" ;;
        nats-server) (become "$path" --version) | sed 's/.*v/NATS /' ;;
        beanstalkd) (become "$path" -v) ;;
    esac
}

# The program of a system.
serves() {
    case $1 in
        rrq) echo "$bench" ;;
        redis*) echo redis-server ;;
        rabbitmq) echo rabbitmq-server ;;
        nats) echo nats-server ;;
        beanstalkd) echo beanstalkd ;;
    esac
}

# --- servers ---

pids=()

# Ends what was started last first, and waits for it.
stop_all() {
    local i pid tries
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        pid=${pids[i]}
        kill "$pid" 2>/dev/null || continue
        for ((tries = 0; tries < 150; tries++)); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    pids=()
}

clean_up() {
    local status=$?
    trap - EXIT
    stop_all
    rm -rf "${data:?}/$OWN"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Runs a command that `clean_up` can end, which a command in the foreground would hold up.
attend() {
    local status=0
    "$@" &
    pids+=($!)
    wait $! || status=$?
    unset "pids[-1]"
    return $status
}

wait_for_port() {
    local tries
    for ((tries = 0; tries < 600; tries++)); do
        if (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return; fi
        kill -0 "$2" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 20 "$out/server.log" >&2
    fail "$3 does not listen on port $1" "see $out/server.log; is the port taken?"
}

# Starts a rival with an empty folder; `server` is its process.
start() {
    local system=$1 path folder own=$data/$OWN
    if (: <>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; then
        fail "something listens on port $PORT" "end it: this script needs ports $PORT to $DIST_PORT"
    fi
    path=$(program "$(serves "$system")")
    rm -rf "$own"
    mkdir -p "$own"
    cp "$here"/settings/* "$own"
    folder=$(seen "$path" "$own")
    case $system in
        redis) become "$path" "$folder/redis.conf" --dir "$folder" --port $PORT&>"$out/server.log" & ;;
        redis-unsynced)
            become "$path" "$folder/redis.conf" --dir "$folder" --port $PORT --appendfsync no&>"$out/server.log" & ;;
        nats) become "$path" -c "$folder/nats.conf" -a 127.0.0.1 -p $PORT -sd "$folder"&>"$out/server.log" & ;;
        beanstalkd) become "$path" -l 127.0.0.1 -p $PORT -b "$folder" -f0&>"$out/server.log" & ;;
        rabbitmq) start_rabbitmq "$path" "$folder" ;;
    esac
    server=$!
    pids+=("$server")
    wait_for_port $PORT "$server" "$system"
}

# Two processes: Erlang's registry of nodes, which would otherwise stay, and the node.
start_rabbitmq() {
    local path=$1 folder=$2 epmd
    epmd=$(program epmd)
    (become "$epmd" -address 127.0.0.1 -port $EPMD_PORT) &>"$out/server.log" &
    pids+=($!)
    wait_for_port $EPMD_PORT $! epmd
    (
        export HOME=$folder ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT=$EPMD_PORT
        export RABBITMQ_NODENAME=compare@localhost RABBITMQ_NODE_IP_ADDRESS=127.0.0.1
        export RABBITMQ_NODE_PORT=$PORT RABBITMQ_DIST_PORT=$DIST_PORT
        export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}"
        export RABBITMQ_CONFIG_FILE=$folder/rabbitmq.conf RABBITMQ_MNESIA_BASE=$folder/data
        export RABBITMQ_LOG_BASE=$folder/log RABBITMQ_ENABLED_PLUGINS_FILE=$folder/plugins
        export RABBITMQ_PID_FILE=$folder/pid
        # Its script then becomes the node instead of watching it.
        export RUNNING_UNDER_SYSTEMD=1
        become "$path"
    ) &>"$out/server.log" &
}

# --- measurements ---

# What a row asks for, as flags that both load generators know.
flags() {
    local consumers=0 queues=8 batch=1
    [[ $1 != life-* ]] || consumers=$CONNECTIONS
    [[ $1 != *-1 ]] || queues=1
    [[ $1 != batch-* ]] || batch=$BATCH
    echo --producers $CONNECTIONS --consumers $consumers --window $WINDOW --batch $batch \
        --payload $PAYLOAD --queues $queues
}

# A system's failure is told and leaves its cell empty. Exit status 1 of a load is a figure with
# jobs lost, which the table shows.
no_figure() {
    local status=$?
    tail -n 5 "$2" >&2
    if ((status != 1)) || [[ ! -s $1 ]]; then
        echo "   no figure: see $2; $out/server.log is what the last rival said" >&2
        rm -f "$1"
    fi
}

# The mean of some writes as rrq's log makes them, in microseconds: what the disk gives now.
disk_us() {
    local begun=${EPOCHREALTIME/[.,]/}
    dd if=/dev/zero of="$data/probe" bs=4k count=500 oflag=direct,dsync status=none
    echo $(((${EPOCHREALTIME/[.,]/} - begun) / 500))
    rm -f "$data/probe"
}

# How quiet the machine is: figures of a busy one are low, and not in the same proportion for all.
state() {
    echo "a 4 KiB O_DSYNC write takes $(disk_us) us, load average $(cut -d' ' -f1 /proc/loadavg)"
}

# One run of a cell.
measure() {
    local system=$1 row=$2 file=$out/$2.$1.$3.json log=$out/$2.$1.$3.log
    local -a load
    read -ra load <<<"$(flags "$row")"
    echo "-- $row, $system, run $3 of $runs" >&2
    if [[ $system == rrq ]]; then
        attend "$bench" load "${load[@]}" --duration "${duration}s" --data-dir "$data/$OWN" \
            --json "$file" >"$log" 2>&1 || no_figure "$file" "$log"
    else
        start "$system"
        attend "$target/release/rrq-compare" load "${system%-unsynced}" --port $PORT \
            --pid "$server" "${load[@]}" --duration "$duration" >"$file" 2>"$log" ||
            no_figure "$file" "$log"
        stop_all
    fi
    rm -rf "${data:?}/$OWN"
}

cargo build --locked --release --target-dir "$target" --manifest-path "$here/loadgen/Cargo.toml"
rm -f "$out"/*.{json,tsv,log}
present=()
for system in ${systems//,/ }; do
    name=$(serves "$system")
    if [[ $system == rrq && ! -x $bench ]]; then
        fail "there is no $bench" "cargo build --release --bins, or RRQ_BENCH=/path/to/rrq-bench"
    elif [[ $system == rrq ]]; then
        printf '%s\t%s\n' "$system" "$("$bench" --version)" >>"$out/systems.tsv"
    elif [[ -z $(program "$name") ]]; then
        echo "left out: $system, since there is no $name here (--install, or install it)" >&2
        continue
    else
        printf '%s\t%s\n' "$system" "$(version "$name")" >>"$out/systems.tsv"
    fi
    present+=("$system")
done
cat >"$out/host.tsv" <<END
date	$(date -u +%Y-%m-%d)
cpu	$(nproc) x $(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1)
kernel	Linux $(uname -r)
file system	$file_system
terms	$CONNECTIONS producers (and $CONNECTIONS consumers) x window $WINDOW, $PAYLOAD B, $duration s, median of $runs
before	$(state)
END
# Run by run, not cell by cell, so that what else the machine does falls upon all alike.
for ((run = 1; run <= runs; run++)); do
    for row in ${rows//,/ }; do
        for system in "${present[@]}"; do
            # The others have nothing like a request of many jobs.
            [[ $row != batch-* || $system =~ ^(rrq|redis.*|nats)$ ]] || continue
            measure "$system" "$row" "$run"
        done
    done
done
printf 'after\t%s\n' "$(state)" >>"$out/host.tsv"
"$target/release/rrq-compare" table "$out" | tee "$out/table.txt"
echo "figures: $out/compare.json and one file a run beside it" >&2
