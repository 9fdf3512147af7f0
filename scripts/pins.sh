#!/usr/bin/env bash
# Resolve requirements/*.in into requirements/*.txt: every package with its exact version, for every Python that we support
# at once (markers say which version is for which).
set -euo pipefail
cd "$(dirname "$0")/../requirements"

uv=../.venv-pins/bin/uv
if [ ! -x "$uv" ]; then
    python3 -m venv ../.venv-pins
    ../.venv-pins/bin/python -m pip --disable-pip-version-check install --quiet uv==0.13.9
fi

compile() { # OLDEST_PYTHON NAME [CONSTRAINTS]
    echo "pins: $2.in"
    "$uv" pip compile --quiet --upgrade --universal --no-config --no-emit-index-url --no-emit-find-links \
        --custom-compile-command "make pins" --python-version "$1" ${3:+--constraints "$3"} "$2.in" --output-file "$2.txt"
}
# An environment gets demo.txt first and test.txt on top, so the second must not want anything else than the first;
# likewise for the target's.
compile 3.11 demo
compile 3.11 test demo.txt
compile 3.9 target
compile 3.9 target-test target.txt

if grep -n -- '--.*url\|://' ./*.txt; then
    echo "pins: the lines above name a package index; the files must work with whichever one a machine uses" >&2
    exit 1
fi
