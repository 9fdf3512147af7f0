#!/usr/bin/env bash
# Generate docs/reference from the documentation in the plugins and the roles' argument specs.
#   scripts/docs.sh          write it
#   scripts/docs.sh --check  say whether the one in the tree is up to date
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH

fresh=.test/reference
rm -rf "$fresh"
mkdir -p "$fresh" .test/home
# simplified-rst: readable where the source is browsed, without a documentation site.
# antsibull-docs leaves a log in the home directory.
HOME=$PWD/.test/home ANSIBLE_COLLECTIONS_PATH=collections antsibull-docs collection --use-current --fail-on-error --squash-hierarchy \
    --output-format simplified-rst --dest-dir "$fresh" oncall.runbooks

if [ "${1:-}" = --check ]; then
    if ! diff -ru docs/reference "$fresh"; then
        echo "docs/reference is out of date: make docs" >&2
        exit 1
    fi
    echo "docs/reference is up to date"
else
    mkdir -p docs
    rm -rf docs/reference
    cp -r "$fresh" docs/reference
    echo "docs/reference: $(find docs/reference -type f | wc -l) files"
fi
