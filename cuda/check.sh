#!/usr/bin/env bash
# Everything that only a machine with an NVIDIA GPU can show, in one command of a few minutes:
#
#     cuda/check.sh [FOLDER]
#
# builds the program, runs every kernel on the GPU over the rows of the tests and compares with the CPU bit for bit,
# measures the kernels, then converts a model with an adapter on both devices and compares the files. FOLDER keeps the
# model (2.2 GB; put it where reading is fast, such as /dev/shm); without it a temporary one is used and removed.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -gt 0 ]; then
    folder=$1
    mkdir -p "$folder"
else
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
program=target/release/to-gguf

echo "== build"
cargo build --release --quiet
$program devices

echo "== every kernel against the CPU"
TO_GGUF_TEST_GPU=1 cargo test --release --quiet --test cuda_kernels --test cuda_values

echo "== every path of rows through the GPU against the CPU"
cargo test --release --quiet --test cuda_device -- --ignored --test-threads=1

echo "== speed of the kernels"
cargo bench --quiet --bench cuda

echo "== a model of 1.1 billion parameters with an adapter, on both devices"
cargo bench --quiet --bench main_job -- --only-make --dir "$folder"
base=$folder/tiny-1b/model.safetensors
cat "$base" > /dev/null # into the page cache, for both devices alike
size=$(wc -c < "$base")
for type in q4_k_m q8_0 q6_k q5_k_m iq4_xs q4_0 bf16; do
    for device in cpu cuda; do
        start=$(date +%s.%N)
        $program "$folder/tiny-1b-lora" --base "$folder/tiny-1b" --quant $type --device $device -q -o "$folder/$device"
        end=$(date +%s.%N)
        awk -v t="$type" -v d="$device" -v s="$start" -v e="$end" -v n="$size" \
            'BEGIN { printf "%-8s %-5s %7.2f s %7.2f GB/s of source\n", t, d, e - s, n / 1e9 / (e - s) }'
    done
    for file in "$folder"/cpu/*.gguf; do
        cmp "$file" "$folder/cuda/$(basename "$file")"
    done
    rm -rf "$folder/cpu" "$folder/cuda"
done
echo "== all files are the same on both devices"
