#!/bin/sh
# Coverage-guided fuzzing with libFuzzer, on stable Rust: fuzz.sh run|merge|build [TARGET ...]   (no target: all of them)
#   run    searches each target for FUZZ_SECONDS (60) seconds; what it learns stays in target/fuzz/corpus
#   merge  writes to fuzz/corpus as little of that as reaches every branch that is known to be reachable
# The instrumentation is LLVM's own pass, which stable accepts; `--target` keeps it off the build scripts, which have no libFuzzer.
set -eu
mode=${1:-run}
[ $# -eq 0 ] || shift
seconds=${FUZZ_SECONDS:-60}

command -v c++ >/dev/null 2>&1 || {
    echo "fuzz: there is no C++ compiler (libFuzzer is C++): apt-get install g++" >&2
    exit 1
}
# files of a target in the repository
MOST=149
host=$(rustc -vV | sed -n 's/^host: //p')
flags="--cfg fuzzing -Cpasses=sancov-module"
for flag in level=4 inline-8bit-counters pc-table trace-compares; do
    flags="$flags -Cllvm-args=-sanitizer-coverage-$flag"
done
RUSTFLAGS=$flags cargo build --quiet --release --locked --manifest-path fuzz/Cargo.toml --target-dir target/fuzz --target "$host"
binary=$PWD/target/fuzz/$host/release/keynet-fuzz
[ $# -gt 0 ] || set -- $(ls fuzz/corpus)

limits() {
    # the largest inputs that still say something new; slower ones than 5 s or larger ones than 1 GiB are bugs
    case $1 in
    endpoint | pair | path | chain) echo -max_len=2048 ;;
    head) echo -max_len=2048 -dict=fuzz/head.dict ;;
    *) echo -max_len=1600 ;;
    esac
    echo -timeout=5 -rss_limit_mb=1024
}

fuzz() {
    target=$1
    learned=target/fuzz/corpus/$target
    found=target/fuzz/found/$target
    mkdir -p "$learned" "$found"
    case $mode in
    run)
        echo "== $target, $seconds s; inputs that fail go to $found/"
        # shellcheck disable=SC2046 # several words
        KEYNET_FUZZ=$target "$binary" $(limits "$target") -max_total_time="$seconds" -print_final_stats=1 \
            -artifact_prefix="$found/" "$learned" "fuzz/corpus/$target" 2>"$found/log" || {
            tail -n 40 "$found/log" >&2
            echo "fuzz: $target failed; make it a named test, then run KEYNET_FUZZ=$target $binary $found/..." >&2
            exit 1
        }
        grep -E '^#[0-9]+[[:space:]]+(INITED|DONE)|number_of_executed|average_exec|peak_rss' "$found/log"
        ;;
    merge)
        fresh=$(mktemp -d)
        # shellcheck disable=SC2046
        KEYNET_FUZZ=$target "$binary" $(limits "$target") -set_cover_merge=1 -use_counters=0 \
            "$fresh" "fuzz/corpus/$target" "$learned" 2>"$found/log"
        find "fuzz/corpus/$target" -type f -delete
        # the shortest are found again in no time
        find "$fresh" -type f -printf '%s %p\n' | sort -rn | tail -n +"$((MOST + 1))" | cut -d ' ' -f 2 | xargs -r rm
        mv "$fresh"/* "fuzz/corpus/$target/" && rmdir "$fresh"
        bytes=$(cat "fuzz/corpus/$target/"* | wc -c)
        echo "$target: $(find "fuzz/corpus/$target" -type f | wc -l) inputs, $bytes bytes"
        ;;
    esac
}

case $mode in
build) ;;
run | merge) for target; do fuzz "$target"; done ;;
*) echo "usage: fuzz.sh run|merge|build [TARGET ...]" >&2; exit 2 ;;
esac
