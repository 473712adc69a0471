#!/usr/bin/env bash
# Everything that made stellarcli/data/default.safetensors, in about 35 minutes on two
# cores:   tests/benchmarks/train_default.sh ../shared/data WORK_DIRECTORY
#
# Five folds by plan: each DR10 star of default.folds.fits is predicted by a model that
# saw neither it nor its plan, with errors calibrated by the other folds. The shipped
# model has learnt from all plans. Pre-training and templates are common to the folds:
# in the model's range the emulator is the MILES interpolator, and takes from LAMOST
# only the resolution and the statistics of its noise. Started again, it goes on.
set -euo pipefail
data=$(realpath "$1") work=$2
here=$(realpath "$(dirname "$0")")
labels="$data/lamost-dr10/train_labels.fits"
mkdir -p "$work/lamost"
cd "$work"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

[ -e lamost/.done ] || tar xJf "$data/lamost-dr10/train.tar.xz" -C lamost
touch lamost/.done

[ -e simulated.fits ] || {
    stellar fetch simulated -n 60000 --seed 7 --no-gzip --range teff=3400:13000 \
        -o simulated --labels-out truth.fits --overwrite
    stellar preprocess simulated -o simulated.fits --labels truth.fits
}
[ -e lamost.fits ] || stellar preprocess lamost -o lamost.fits --labels "$labels"
stellar train simulated.fits -o pretrained.safetensors --config "$here/pretrain.yaml" \
    --resume
stellar train lamost.fits -o default.safetensors --config "$here/default.yaml" \
    --init pretrained.safetensors --refit --resume

good="clean and consistent and 3785.9 < teff < 8399.7"
stellar compare default.folds.fits "$labels" --select "$good and snrg > 25"
stellar compare default.folds.fits "$labels" --select "$good and snrg > 10" \
    --by snrg=10,25,50,100,999
stellar compare default.folds.fits "$labels" --select "snrg > 25 and consistent" \
    --figure trust.pdf --panels map,bias,bins --overwrite --quiet >/dev/null
stellar predict "$data/repeats" -o repeats.fits --model default.safetensors --overwrite
stellar compare repeats.fits "$data/repeats/repeats.csv" --repeats star
