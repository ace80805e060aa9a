#!/usr/bin/env bash
# The quick part of the gate, for use before each commit: format, lints, tests.
set -euo pipefail
exec "$(dirname "$0")/../.ci/run" fmt clippy tests
