#!/bin/sh
# A SiLU model made sparse, profiled and run: three commands. Needs onnxruntime-node; minutes for a few million weights.
#   sh examples/sparsify.sh MODEL_FOLDER TEXT_FILE OUTPUT_FOLDER [options of sparsify, such as --steps 400]
set -eu
model=$1 text=$2 out=$3
shift 3
hybrid_infer=${HYBRID_INFER:-hybrid-infer}
$hybrid_infer sparsify "$model" --text "$text" -o "$out/sparse-model" "$@"
$hybrid_infer profile "$out/sparse-model" --text "$text" --quick -o "$out"
cd "$out" && $hybrid_infer run sparse-model "Once upon a time" -n 20
