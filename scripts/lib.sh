# Sourced by the other scripts: where things are, and how what is missing gets installed.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
[[ $target == /* ]] || target=$PWD/$target

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
    say "$@"
    exit 1
}

# The first of some packages that this distribution has; the first one if nobody knows.
known_package() {
    local package
    for package in "$@"; do
        if apt-cache show "$package" >/dev/null 2>&1; then
            echo "$package"
            return
        fi
    done
    echo "$1"
}

# Installs Debian packages, after saying so. None of those asked for here brings a system service.
install_packages() {
    (($# > 0)) || return 0
    local as_root=()
    if ! command -v apt-get >/dev/null; then
        die "missing here, by their Debian names: $*. Please install them, then try again."
    fi
    if ((EUID != 0)); then
        command -v sudo >/dev/null || die "missing: $*. Please run, as root: apt-get install $*"
        as_root=(sudo)
        # A prompt nobody can answer would hang.
        if [[ ! -t 0 ]] && ! sudo -n true 2>/dev/null; then
            die "missing, and sudo asks for a password: please run: sudo apt-get install $*"
        fi
    fi
    say "missing: $*; installing with apt-get"
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y)
    # The package lists of a fresh container are empty or stale: refresh them only if it does not work without.
    "${apt[@]}" install --no-install-recommends "$@" >&2 </dev/null ||
        { "${apt[@]}" update >&2 </dev/null && "${apt[@]}" install --no-install-recommends "$@" >&2 </dev/null; } ||
        die "apt-get could not install: $*"
}

# What compiling the crate with its C libraries (librdkafka, zstd) takes, and tracing system calls in tests.
need_build_tools() {
    local missing=()
    command -v cargo >/dev/null || die "no cargo here: please install Rust (see rust-version in Cargo.toml) from https://rustup.rs"
    command -v gcc >/dev/null || missing+=(gcc libc6-dev)
    command -v g++ >/dev/null || missing+=(g++)
    command -v make >/dev/null || missing+=(make)
    if ! command -v pkg-config >/dev/null; then
        missing+=(pkg-config libssl-dev zlib1g-dev)
    else
        pkg-config --exists openssl || missing+=(libssl-dev)
        pkg-config --exists zlib || missing+=(zlib1g-dev)
    fi
    if [[ ${1:-} == tests ]]; then
        command -v strace >/dev/null || missing+=(strace)
    fi
    install_packages "${missing[@]}"
}
