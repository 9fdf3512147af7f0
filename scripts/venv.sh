#!/usr/bin/env bash
# Make a virtual environment, or bring an existing one up to date:  scripts/venv.sh DIRECTORY PYTHON REQUIREMENTS...
set -euo pipefail

venv=$1 python=$2
shift 2

if ! command -v "$python" >/dev/null; then
    echo "venv: $python is not on the PATH; Python 3.11 or newer is needed (apt-get install python3 python3-venv)" >&2
    exit 1
fi
if [ ! -x "$venv/bin/python" ]; then
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "venv: $("$python" --version) is too old, 3.11 or newer is needed; name another one with make PYTHON=python3.12 ..." >&2
        exit 1
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "venv: $python comes without the venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 1
    fi
    echo "venv: $venv from $("$python" --version)"
    "$python" -m venv "$venv"
fi
echo "venv: installing $* into $venv"
requirements=()
for file in "$@"; do
    requirements+=(-r "$file")
done
"$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-input "${requirements[@]}"
