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
