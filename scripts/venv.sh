#!/bin/sh
# Makes the virtual environment, or brings it up to date: venv.sh INTERPRETER FOLDER
set -eu
interpreter=$1
folder=$2

# a venv whose interpreter was upgraded away, or that came from elsewhere, is made anew
if ! "$folder/bin/python" -c 'import pip' 2>/dev/null; then
    echo "making $folder with $("$interpreter" -V)"
    "$interpreter" -m venv --clear "$folder"
fi
echo "installing the development tools into $folder"
# pip reads dependency groups since 25.1
"$folder/bin/python" -m pip install --quiet --upgrade "pip>=25.1"
"$folder/bin/python" -m pip install --quiet --group dev
# its tests are skipped, and named at the end, where there is no wheel for this Python
"$folder/bin/python" -m pip install --quiet --only-binary :all: --group interop 2>/dev/null ||
    echo "not installed, and not tested against: libtorrent has no wheel for $("$interpreter" -V) on this machine" >&2
# what this checkout was called before: its command has the name of today's
"$folder/bin/python" -m pip uninstall --quiet --yes keynet 2>/dev/null || true
