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

# Building may need the proxy of this network; a test must not meet it.
apart() { env -u http_proxy -u https_proxy -u all_proxy -u no_proxy -u HTTP_PROXY -u HTTPS_PROXY -u ALL_PROXY -u NO_PROXY "$@"; }

if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --no-run
    apart cargo nextest run --locked --profile "$kind" --run-ignored "$ignored_nextest"
    # nextest does not run the examples in the documentation
    apart cargo test --locked --quiet --doc
else
    cargo test --locked --no-run
    # shellcheck disable=SC2086 # empty means no argument
    apart cargo test --locked --no-fail-fast -- $ignored_cargo
fi
