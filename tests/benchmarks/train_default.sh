#!/usr/bin/env bash
# Everything that made stellarcli/data/default.safetensors, in about 25 minutes on two
# cores:   tests/benchmarks/train_default.sh ../shared/data WORK_DIRECTORY
#
# A quarter of the LAMOST plans (test: 0.25 in default.yaml, by the hash of the plan's
# name) is never used here, nor by the emulator; the last command measures on them.
set -euo pipefail
data=$(realpath "$1") work=$2
here=$(realpath "$(dirname "$0")")
mkdir -p "$work/lamost"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

[ -e "$work/lamost/.done" ] || tar xJf "$data/lamost-dr10/train.tar.xz" -C "$work/lamost"
touch "$work/lamost/.done"

stellar fetch simulated -n 60000 --seed 7 --no-gzip --range teff=3400:13000 -o "$work/simulated" \
    --labels-out "$work/truth.fits" --overwrite
stellar preprocess "$work/simulated" -o "$work/simulated.fits" \
    --labels "$work/truth.fits" --overwrite
stellar preprocess "$work/lamost" -o "$work/lamost.fits" \
    --labels "$data/lamost-dr10/train_labels.fits" --overwrite

stellar train "$work/simulated.fits" -o "$work/pretrained.safetensors" \
    --config "$here/pretrain.yaml" --overwrite
stellar train "$work/lamost.fits" -o "$work/default.safetensors" \
    --config "$here/default.yaml" --init "$work/pretrained.safetensors" --overwrite

stellar predict "$work/lamost.fits" -o "$work/params.fits" \
    --model "$work/default.safetensors" --overwrite
python "$here/score.py" "$work/params.fits" "$data/lamost-dr10/train_labels.fits" \
    "$work/default.safetensors"
