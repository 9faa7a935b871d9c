#!/usr/bin/env bash
# Makes sure that everything the tests and the demo need, and a fresh Debian does not have, is there.
#
# Owns: the few small tools that are installed with apt when they are missing, and the cache of unpacked Debian
# packages (QEMU 10, busybox, the stock kernel, etcd). The cache lies in .cache/ of the repository, or where FT_CACHE says.
# Nothing in it is installed over the system: QEMU runs with the libraries and the loader of its own packages, so it
# does not matter what else the machine has. Safe to run twice, also at once; quick when there is nothing to do.
#
# Does not: build anything of ours.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=$(realpath -m "${FT_CACHE:-$repository/.cache}")
suite=bookworm
default_mirror=http://deb.debian.org/debian
qemu_major_least=10

say() { echo "deps: $*" >&2; }
die() { echo "deps: $*" >&2; exit 1; }

# Runs a command whose output matters only if it fails.
quietly() {
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 || status=$?
    if [ "$status" != 0 ]; then
        cat "$log" >&2
    fi
    rm -f "$log"
    return "$status"
}

# --- Tools of the system -------------------------------------------------------------------------------------------

ensure_tools() {
    # command=package
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
    # The guest's agent is linked statically: the C library's archive comes with its headers.
    [ -e /usr/lib/x86_64-linux-gnu/libc.a ] || missing+=(libc6-dev)
    [ ${#missing[@]} = 0 ] && return
    [ "$(id -u)" = 0 ] || die "these packages are missing and only root can install them: ${missing[*]}"
    command -v apt-get >/dev/null || die "these packages are missing and there is no apt-get here: ${missing[*]}"
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    patiently apt-get update || die "apt-get update failed"
    patiently apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}" ||
        die "apt-get could not install ${missing[*]}"
}

# Tries again for a while: someone else may be using apt.
patiently() {
    local try
    for try in 1 2 3 4 5 6 7 8; do
        if [ "$try" = 8 ]; then
            quietly "$@"
            return
        fi
        "$@" >/dev/null 2>&1 && return
        sleep "$try"
    done
}

# --- Packages into the cache ---------------------------------------------------------------------------------------

# The mirror this machine already uses for Debian, else the default one.
mirror() {
    apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 2>/dev/null |
        awk -v suite="$suite" '$2 == suite { sub("/$", "", $1); print $1; found = 1; exit }
            END { if (!found) exit 1 }' || echo "$default_mirror"
}

# apt with sources, state and package lists of its own. It believes that nothing is installed, so it resolves a
# package down to the C library.
private_apt() {
    local tool=$1
    shift
    "$tool" -o Dir::Etc::sourcelist="$cache/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null -o Dir::State="$cache/apt/state" \
        -o Dir::State::status="$cache/apt/status" -o Dir::Cache="$cache/apt/cache" \
        -o APT::Sandbox::User=root -o APT::Architecture=amd64 -o APT::Architectures::=amd64 \
        -o APT::Install-Recommends=false -o Acquire::Languages=none -o Acquire::Retries=3 "$@"
}

write_sources() {
    local line="[arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    printf 'deb %s %s %s main\n' "$line" "$1" "$suite" "$line" "$1" "$suite-backports" >"$cache/apt/sources.list"
}

prepare_apt() {
    [ -z "${apt_prepared:-}" ] || return 0
    local uri
    mkdir -p "$cache/apt/state/lists/partial" "$cache/apt/cache/archives/partial"
    : >"$cache/apt/status"
    uri=$(mirror)
    write_sources "$uri"
    if ! quietly private_apt apt-get update; then
        [ "$uri" != "$default_mirror" ] || die "cannot fetch Debian's package lists; is the network up?"
        write_sources "$default_mirror"
        quietly private_apt apt-get update || die "cannot fetch Debian's package lists; is the network up?"
    fi
    apt_prepared=yes
}

# unpack_one DIRECTORY PACKAGE: this package alone, from the cache's own lists.
unpack_one() {
    local downloads
    downloads=$(mktemp -d "$cache/tmp.download.XXXXXX")
    (cd "$downloads" && quietly private_apt apt-get download "$2") || die "cannot download $2"
    unpack_all "$downloads" "$1"
    rm -rf "$downloads"
}

# unpack_closure DIRECTORY PACKAGE SUITE: this package of this suite, and all that it depends on.
unpack_closure() {
    local archives=$cache/apt/cache/archives
    quietly private_apt apt-get install --download-only -y -t "$3" "$2" || die "cannot download $2 from $3"
    unpack_all "$archives" "$1"
    rm -f "$archives"/*.deb
}

# unpack_all FOLDER DIRECTORY
unpack_all() {
    local deb
    for deb in "$1"/*.deb; do
        dpkg-deb -x "$deb" "$2" || die "cannot unpack $deb"
    done
}

# publish TEMPORARY NAME: only now does the cache have it.
publish() {
    rm -rf "${cache:?}/$2"
    mv -T "$1" "$cache/$2"
}

# --- QEMU ----------------------------------------------------------------------------------------------------------

qemu_is_recent() {
    local version
    version=$("$1" --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9]*\)\..*/\1/p')
    [ -n "$version" ] && [ "$version" -ge "$qemu_major_least" ]
}

ensure_qemu() {
    local wrapper=$cache/qemu/qemu-system-x86_64 system directory
    if [ -x "$wrapper" ] && qemu_is_recent "$wrapper"; then
        return
    fi
    directory=$(mktemp -d "$cache/tmp.qemu.XXXXXX")
    if system=$(command -v qemu-system-x86_64) && qemu_is_recent "$system"; then
        printf '#!/bin/sh\nexec %s "$@"\n' "$system" >"$directory/qemu-system-x86_64"
    else
        say "fetching QEMU $qemu_major_least from $suite-backports (once)"
        prepare_apt
        unpack_closure "$directory" qemu-system-x86 "$suite-backports"
        write_qemu_wrapper "$directory"
    fi
    chmod 755 "$directory" "$directory/qemu-system-x86_64"
    publish "$directory" qemu
    qemu_is_recent "$wrapper" || die "the QEMU in $cache/qemu does not start; remove that folder and try again"
}

# The unpacked QEMU runs with its own loader and libraries.
write_qemu_wrapper() {
    cat >"$1/qemu-system-x86_64" <<'WRAPPER'
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")
export QEMU_MODULE_DIR="$root/usr/lib/x86_64-linux-gnu/qemu"
exec "$root/lib64/ld-linux-x86-64.so.2" \
    --library-path "$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu" \
    "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" \
    -L "$root/usr/lib/ipxe/qemu" "$@"
WRAPPER
}

# --- busybox and the kernel ----------------------------------------------------------------------------------------

ensure_busybox() {
    local directory
    [ -x "$cache/busybox/bin/busybox" ] && return
    say "fetching busybox (once)"
    prepare_apt
    directory=$(mktemp -d "$cache/tmp.busybox.XXXXXX")
    unpack_one "$directory" busybox-static
    chmod 755 "$directory"
    publish "$directory" busybox
}

# The stock kernel: boot/ and lib/modules/ as packaged, and beside them vmlinuz (as distributed), vmlinux (the ELF
# inside it) and modules (a link to the folder of its modules).
ensure_kernel() {
    local directory package
    [ -e "$cache/kernel/vmlinux" ] && return
    say "fetching Debian's stock kernel (once)"
    prepare_apt
    package=$(private_apt apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p')
    [ -n "$package" ] || die "apt does not know which kernel linux-image-amd64 stands for"
    directory=$(mktemp -d "$cache/tmp.kernel.XXXXXX")
    unpack_one "$directory" "$package"
    cp "$directory"/boot/vmlinuz-* "$directory/vmlinuz"
    ln -s "lib/modules/${package#linux-image-}" "$directory/modules"
    [ -d "$directory/modules/kernel" ] || die "$package does not have the modules where they were expected"
    extract_vmlinux "$directory/vmlinuz" "$directory/vmlinux"
    chmod 755 "$directory"
    publish "$directory" kernel
}

# number FILE OFFSET BYTES: an unsigned little-endian number.
number() { od -An -j "$2" -N "$3" -t "u$3" --endian=little "$1" | tr -d ' '; }

# extract_vmlinux BZIMAGE ELF: the payload lies where the setup header of the boot protocol (2.08 on) says.
extract_vmlinux() {
    local sectors offset length magic unpacker
    sectors=$(number "$1" $((0x1f1)) 1)
    offset=$(($(number "$1" $((0x248)) 4) + (sectors + 1) * 512))
    length=$(number "$1" $((0x24c)) 4)
    magic=$(od -An -j "$offset" -N 4 -t x1 "$1" | tr -d ' ')
    case $magic in
    fd377a58) unpacker='xz -dc' ;;
    28b52ffd) unpacker='zstd -dcq' ;;
    02214c18) unpacker='lz4 -dcq' ;;
    1f8b*) unpacker='gzip -dc' ;;
    *) die "the kernel in $1 is compressed in a way not known here (first bytes $magic)" ;;
    esac
    # The payload ends with its uncompressed size: four bytes more than an unpacker expects, but a check of its work.
    tail -c +$((offset + 1)) "$1" | head -c "$length" | $unpacker >"$2" 2>/dev/null || true
    [ "$(stat -c %s "$2")" = "$(number "$1" $((offset + length - 4)) 4)" ] || die "$1 did not unpack to its full size"
    [ "$(od -An -N 4 -t x1 "$2" | tr -d ' ')" = 7f454c46 ] || die "what $1 unpacks to is no ELF kernel"
}

# --- etcd ----------------------------------------------------------------------------------------------------------

# The server alone, for the tests of the arbiter; with the C library that it was built for.
ensure_etcd() {
    local directory
    "$cache/etcd/etcd" --version >/dev/null 2>&1 && return
    say "fetching etcd (once)"
    prepare_apt
    directory=$(mktemp -d "$cache/tmp.etcd.XXXXXX")
    unpack_one "$directory" etcd-server
    unpack_one "$directory" libc6
    cat >"$directory/etcd" <<'WRAPPER'
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")
exec "$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/lib/x86_64-linux-gnu" "$root/usr/bin/etcd" "$@"
WRAPPER
    chmod 755 "$directory" "$directory/etcd"
    publish "$directory" etcd
    "$cache/etcd/etcd" --version >/dev/null || die "the etcd in $cache/etcd does not start; remove that folder and try again"
}

# --- All of it -----------------------------------------------------------------------------------------------------

tools=(ip=iproute2 tc=iproute2 mkfs.ext4=e2fsprogs xz=xz-utils zstd=zstd lz4=lz4 gcc=gcc git=git)
mkdir -p "$cache" || die "cannot make the cache $cache; FT_CACHE chooses another place"
{ exec 9>"$cache/lock"; } 2>/dev/null || die "cannot write to the cache $cache; are you root? FT_CACHE chooses another place"
flock 9
if [ "${1:-}" = fuzz ]; then
    # The fuzzer's own part is C++. Nothing else is needed for it.
    ensure_tools gcc=gcc c++=g++
    exit
fi
ensure_tools "${tools[@]}"
# What an interrupted run left half done is of no use; nobody else is at work under this lock.
rm -rf "$cache"/tmp.*
ensure_qemu
ensure_busybox
ensure_kernel
ensure_etcd
