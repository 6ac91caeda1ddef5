#!/usr/bin/env bash
# Everything that is measured on a GPU, in under ten minutes: gpu.py, with its options.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu.py" "$@"
