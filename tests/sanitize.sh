#!/usr/bin/env bash
# The kernels under the address sanitizer, on every instruction set that this processor has: all `unsafe` is there. Needs a
# nightly toolchain; some five minutes the first time.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTFLAGS=-Zsanitizer=address
target=$(rustc -vV | sed -n 's/^host: //p')
kernels=(portable)
if grep -qw avx2 /proc/cpuinfo; then kernels+=(avx2); fi
if grep -qw avx512_vnni /proc/cpuinfo; then kernels+=(avx512); fi
for set in "${kernels[@]}"; do
    echo "== $set"
    SHARELENS_KERNELS=$set cargo +nightly test --locked --profile checked --target "$target" \
        --target-dir target/sanitize -p sharelens-protocol --lib -- ring::
done
