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

# Runs apt-get as root, without questions.
apt() {
    local as_root=()
    ((EUID == 0)) || as_root=(sudo)
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y "$@" >&2 </dev/null
}

# Says so and ends, unless packages can be installed here; arguments: what is missing.
need_apt() {
    if ! command -v apt-get >/dev/null; then
        die "missing here, by their Debian names: $*. Please install them, then try again."
    fi
    ((EUID != 0)) || return 0
    command -v sudo >/dev/null || die "missing: $*. Please run, as root: apt-get install $*"
    # A prompt that nobody can answer would hang.
    [[ -t 0 ]] || sudo -n true 2>/dev/null ||
        die "missing, and sudo asks for a password: please run: sudo apt-get install $*"
}

# The names of packages, a line each. Alternatives are written A|B|C: the first one that this release has, or simply the
# first where no package lists are.
package_names() {
    local wanted package alternatives
    for wanted in "$@"; do
        IFS='|' read -ra alternatives <<<"$wanted"
        for package in "${alternatives[@]}"; do
            if apt-cache show "$package" >/dev/null 2>&1; then
                echo "$package"
                continue 2
            fi
        done
        echo "${alternatives[0]}"
    done
}

# Installs Debian packages, after saying so. None of those asked for here brings a system service.
install_packages() {
    (($# > 0)) || return 0
    local names
    mapfile -t names < <(package_names "$@")
    need_apt "${names[@]}"
    say "missing: ${names[*]}; installing with apt-get"
    # The package lists of a fresh container are empty, old ones name files that are gone.
    apt update || say "apt-get update failed; trying with the lists that are there"
    mapfile -t names < <(package_names "$@")
    apt install --no-install-recommends "${names[@]}" || die "apt-get could not install: ${names[*]}"
}

# What compiling the crate with its C libraries (librdkafka, zstd) takes, and in tests what they run besides the servers.
need_build_tools() {
    # Some tools lie where a user's search path may not lead.
    local missing=() PATH=$PATH:/usr/sbin:/sbin
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
        # Certificates of the tests' own, and signals.
        command -v openssl >/dev/null || missing+=(openssl)
        type -P kill >/dev/null || missing+=(procps)
        # Small disks of their own: mkfs.ext4 and e2fsck, and mount with loop devices.
        command -v mkfs.ext4 >/dev/null || missing+=(e2fsprogs)
        command -v losetup >/dev/null || missing+=(mount)
        # Root mounts the file system of tests/lost_writes by itself.
        ((EUID == 0)) || command -v fusermount3 >/dev/null || missing+=(fuse3)
    fi
    install_packages "${missing[@]}"
}
