#!/bin/sh
# A SiLU model made sparse, profiled and run: three commands. Needs onnxruntime-node; minutes for a few million weights.
#   sh examples/sparsify.sh MODEL_FOLDER TEXT_FILE [STEPS]
set -eu
model=$1 text=$2 steps=${3:-400}
hybrid-infer sparsify "$model" --text "$text" --steps "$steps" -o sparse-model
hybrid-infer profile sparse-model --text "$text"
hybrid-infer run sparse-model "Once upon a time" -n 60
