#!/bin/sh
# The tests of the crate: cargo-test.sh default | long
# With cargo-nextest when it is there (every test its own process, hangs become failures), else with cargo test.
set -eu
kind=$1

case $kind in
default) ignored_nextest=default ignored_cargo="" ;;
long) ignored_nextest=all ignored_cargo="--include-ignored" ;;
*) echo "usage: cargo-test.sh default|long" >&2; exit 2 ;;
esac

if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --profile "$kind" --run-ignored "$ignored_nextest"
    # nextest does not run the examples in the documentation
    cargo test --locked --quiet --doc
else
    # shellcheck disable=SC2086 # empty means no argument
    cargo test --locked --no-fail-fast -- $ignored_cargo
fi
