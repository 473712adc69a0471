#!/usr/bin/env bash
# The default model beside other methods, on the same five folds by plan:
#     tests/benchmarks/compare_default.sh ../shared/data WORK_DIRECTORY
# after train_default.sh has left its tables and models there. About an hour on two
# cores, most of it for SCA-Net; started again, it goes on.
set -euo pipefail
labels=$(realpath "$1")/lamost-dr10/train_labels.fits work=$2
here=$(realpath "$(dirname "$0")")
cd "$work"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

for name in ridge neighbours gp; do # settings of the descent mean nothing to these
    stellar train lamost.fits -o $name.safetensors --model $name --refit --resume \
        --select "consistent != 0 and snrg > 10" --group plan --folds 5 \
        --set validation=0 $([ $name != neighbours ] || echo --set network.components=20)
done
stellar train lamost.fits -o resnet1d.safetensors --config "$here/default.yaml" \
    --model resnet1d --init pretrained.safetensors --refit --resume

# SCA-Net folds its own recipe's 4096 pixels
[ -e scanet.fits ] || stellar preprocess lamost -r scanet -o scanet.fits --labels "$labels"
[ -e scanet-simulated.fits ] || {
    stellar fetch simulated -n 20000 --seed 7 --no-gzip --range teff=3400:13000 \
        -o scanet-simulated --labels-out scanet-truth.fits --overwrite
    stellar preprocess scanet-simulated -r scanet -o scanet-simulated.fits \
        --labels scanet-truth.fits
}
stellar train scanet-simulated.fits -o scanet-pretrained.safetensors \
    --config "$here/scanet_pretrain.yaml" --set network.width=0.0625 --resume
stellar train scanet.fits -o scanet.safetensors --config "$here/default.yaml" \
    --model scanet --set loss=mae --set epochs=6 --init scanet-pretrained.safetensors \
    --refit --resume

stellar compare default.folds.fits resnet1d.folds.fits scanet.folds.fits \
    gp.folds.fits ridge.folds.fits neighbours.folds.fits "$labels" \
    --select "clean and consistent and 3785.9 < teff < 8399.7 and snrg > 25"
