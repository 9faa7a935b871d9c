# Sourced by the scripts: building, and where what is built lies ($binaries).
# FT_PROFILE chooses another of cargo's profiles than dev.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
profile=${FT_PROFILE:-dev}
binaries=${CARGO_TARGET_DIR:-$root/target}/$([ "$profile" = dev ] && echo debug || echo "$profile")

need_cargo() {
    if ! command -v cargo >/dev/null; then
        echo "there is no cargo here; install Rust 1.95 or later first" >&2
        exit 1
    fi
}

build_binaries() {
    need_cargo
    cargo build --quiet --manifest-path "$root/Cargo.toml" --profile "$profile" --bins
}
