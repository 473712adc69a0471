#!/usr/bin/env bash
# SCA-Net on LAMOST DR10, a quarter of the plans held out:
#     tests/benchmarks/scanet.sh ../shared/data WORK_DIRECTORY
#
# 1. All nine networks at a sixteenth of the paper's width, three seeds each (27 runs,
#    one and a half hours on one core), as a table of means and deviations.
# 2. M-M-T-T at an eighth of the width, pre-trained on simulated spectra (20 minutes).
#    compare_default.sh has it beside the shipped model.
# Started again after an interruption, it goes on.
set -euo pipefail
data=$(realpath "$1") work=$2
here=$(realpath "$(dirname "$0")")
mkdir -p "$work/spectra"
cd "$work"
labels=$data/lamost-dr10/train_labels.fits

if [ ! -e lamost.fits ]; then
    tar xJf "$data/lamost-dr10/train.tar.xz" -C spectra
    stellar preprocess spectra -r scanet -o lamost.fits --labels "$labels"
fi
if [ ! -e simulated.fits ]; then
    stellar fetch simulated -n 30000 --seed 7 --no-gzip --range teff=3400:13000 \
        -o simulated --labels-out truth.fits --overwrite
    stellar preprocess simulated -r scanet -o simulated.fits --labels truth.fits
fi

sweep=(stellar train lamost.fits -m scanet --preset paper -c "$here/scanet_sweep.yaml"
    --seeds 3 --resume)
"${sweep[@]}" -o mbconv.safetensors --grid network.variant=MMMM,MMMT,MMTT,MTTT,TTTT
"${sweep[@]}" -o standard.safetensors --grid network.variant=MMMM,MMMT,MMTT,MTTT \
    --grid network.conv=standard
stellar compare mbconv.runs.csv standard.runs.csv --published scanet

stellar train simulated.fits -o pretrained.safetensors -c "$here/scanet_pretrain.yaml" \
    --resume
stellar train lamost.fits -o scanet.safetensors -c "$here/scanet_finetune.yaml" \
    --init pretrained.safetensors --resume
stellar predict spectra -o params.fits --model scanet.safetensors --overwrite
python "$here/score.py" params.fits "$labels" scanet.safetensors
