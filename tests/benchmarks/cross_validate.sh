#!/usr/bin/env bash
# Every DR10 star predicted by a model that saw neither it nor its plan:
#   tests/benchmarks/cross_validate.sh WORK_DIRECTORY [FOLDS]
# after train_default.sh has made lamost.fits and pretrained.safetensors there. Ten
# folds take 20 minutes on two cores; started again, it goes on where it was.
#
# Pre-training and templates are common to all folds: below 7410 Å the emulator is the
# MILES interpolator, and takes from LAMOST only the resolution and statistics of the
# noise. pool.py prints the plans that gave these and those that didn't apart.
set -euo pipefail
work=$1 folds=${2:-10}
here=$(realpath "$(dirname "$0")")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

stellar train "$work/lamost.fits" -o "$work/fold.safetensors" --resume \
    --config "$here/default.yaml" --set test=0 --folds "$folds" \
    --init "$work/pretrained.safetensors"
for ((fold = 0; fold < folds; fold++)); do
    stellar predict "$work/lamost.fits" -o "$work/fold$fold.fits" --quiet --overwrite \
        --model "$work/fold.fold$fold.safetensors"
done
python "$here/pool.py" "$work" "$folds"
