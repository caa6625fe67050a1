#!/bin/sh
# The core (no default features) must depend on no runtime, no socket library and no Python.
set -eu
banned='tokio|tokio-rustls|mio|quinn-udp|socket2|pyo3|pyo3-async-runtimes'

# build-dependencies run on the builder's machine and are not part of the core
tree() { cargo tree --locked --edges normal --prefix none --format '{p}' "$@" | cut -d ' ' -f 1 | sort -u; }

# a check that cannot fail is worth nothing: the full crate must show what the core may not
tree | grep -Eqx 'tokio' || { echo "core-is-bare: tokio is not even in the full crate; is cargo tree read rightly?" >&2; exit 1; }

if found=$(tree --no-default-features | grep -Ex "$banned"); then
    echo "core-is-bare: without default features the crate still depends on:" $found >&2
    exit 1
fi
echo "the core depends on no runtime, no socket library and no Python"
