#!/bin/sh
# Is what only the system can provide there? Says what is missing and how to get it.
#   preflight.sh rust | preflight.sh python INTERPRETER
set -eu

missing() {
    printf 'keynet: %s\n' "$1" >&2
    printf '        %s\n' "$2" >&2
    exit 1
}

# version_at_least HAVE WANT
version_at_least() {
    [ "$(printf '%s\n%s\n' "$1" "$2" | sort -t. -k1,1n -k2,2n -k3,3n | head -n 1)" = "$2" ]
}

rust() {
    command -v cargo >/dev/null 2>&1 ||
        missing "cargo is not on the PATH" "install Rust from https://rustup.rs, then open a new shell"
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    have=$(cargo --version | cut -d ' ' -f 2 | cut -d - -f 1)
    version_at_least "$have" "$want" ||
        missing "cargo $have is too old, $want is needed" "rustup update stable (a Rust from apt is usually too old)"
    command -v cc >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 || command -v clang >/dev/null 2>&1 ||
        missing "there is no C compiler (the cryptography of aws-lc is C)" "apt-get install gcc, or xcode-select --install"
}

python() {
    command -v "$1" >/dev/null 2>&1 ||
        missing "$1 is not on the PATH" "install Python >= 3.10, or name one: make PYTHON=/path/to/python3"
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        missing "$1 is $("$1" -V 2>&1), Python >= 3.10 is needed" "name another: make PYTHON=python3.12 (after make clean)"
    "$1" -c 'import ensurepip, venv' 2>/dev/null ||
        missing "$1 cannot make virtual environments (no ensurepip)" "apt-get install python3-venv"
}

"$@"
