#!/bin/sh
# The programs that only the tests need, and where they come from.
#   test-tools.sh install   as root on a machine with apt: installs what is missing. Else it says what is missing, and goes on
#   test-tools.sh missing   prints the packages that are missing, on one line
# With CI=true it may use sudo, and fails when something cannot be installed. KEYNET_INSTALL=no keeps it from installing.
set -eu

# program:package; a file of the system counts as a program
tools="
make:make
cc:gcc
cc:libc6-dev
transmission-daemon:transmission-daemon
turnserver:coturn
turnutils_uclient:coturn
nft:nftables
conntrack:conntrack
miniupnpd:miniupnpd-nftables
openssl:openssl
curl:curl
wget:wget
git:git
ip:iproute2
unshare:util-linux
"
# what each of them is for, in the order of the list:
# building; interop with libutp (tests/python/interop); relays (tests/relay, tests/python/relay); the laboratory of NATs
# (tests/nat) with ports that a router opens and certificates of relays; clients of the forward proxy
# (tests/python/test_http.py); namespaces for the laboratory and transmission

# daemons are there, and not on the PATH of everybody
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

missing() {
    packages=
    for tool in $tools; do
        program=${tool%%:*} package=${tool#*:}
        command -v "$program" >/dev/null 2>&1 || packages="$packages $package"
    done
    python3 -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python3 python3-venv"
    # shellcheck disable=SC2086 # several words
    [ -z "$packages" ] || printf '%s\n' $packages | sort -u | tr '\n' ' ' | sed 's/ $//'
}

# whether the machine installs packages; says on standard error why not
may_install() {
    if [ "${KEYNET_INSTALL:-yes}" = no ]; then
        echo "KEYNET_INSTALL=no" && return 1
    fi
    command -v apt-get >/dev/null 2>&1 || { echo "there is no apt-get" && return 1; }
    [ "$(id -u)" -eq 0 ] && return 0
    [ "${CI:-}" = true ] && command -v sudo >/dev/null 2>&1 && return 0
    echo "not root" && return 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

apt() {
    as_root apt-get update -qq || return 1
    # Debian starts what it installs: not this time
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'as_root rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null && as_root chmod 755 "$policy" || return 1
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@"
}

case ${1:-} in
missing)
    missing
    ;;
install)
    packages=$(missing)
    [ -n "$packages" ] || exit 0
    if ! why=$(may_install); then
        echo "keynet: not installed for the tests ($why): $packages" >&2
        [ "${CI:-}" != true ] || exit 1
        exit 0
    fi
    echo "installing what the tests need: $packages"
    # shellcheck disable=SC2086 # several words
    if ! apt $packages; then
        echo "keynet: apt-get failed; what needs these packages will not run: $packages" >&2
        [ "${CI:-}" != true ] || exit 1
    fi
    ;;
*)
    echo "usage: test-tools.sh install|missing" >&2
    exit 2
    ;;
esac
