#!/usr/bin/env bash
# Everything that made stellarcli/data/mk.safetensors and its tables, in about 20 minutes
# of one core:   tests/benchmarks/train_mk.sh ../shared/data WORK_DIRECTORY
#
# The test plans are those of the default model (test: 0.25 by the hash of the plan's
# name); library stars and templates are split by name. The last commands measure.
set -euo pipefail
data=$(realpath "$1") work=$2
here=$(realpath "$(dirname "$0")")
mkdir -p "$work/lamost"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
labels="$data/lamost-dr10/train_labels.fits"

[ -e "$work/lamost/.done" ] || tar xJf "$data/lamost-dr10/train.tar.xz" -C "$work/lamost"
touch "$work/lamost/.done"

# the shipped model
stellar preprocess "$work/lamost" -o "$work/lamost.fits" --labels "$labels" --overwrite
python "$here/mk_stars.py" "$data" -o "$work/stars.fits"
stellar train "$work/lamost.fits" "$work/stars.fits" -o "$work/mk.safetensors" \
    --config "$here/mk.yaml" --overwrite
for table in lamost stars; do
    stellar predict "$work/$table.fits" -o "$work/mk_$table.fits" \
        --model "$work/mk.safetensors" --overwrite
    python "$here/held_out.py" "$work/mk.safetensors" "$work/${table}_truth.fits" \
        "$work/$table.fits"
    stellar compare "$work/mk_$table.fits" "$work/${table}_truth.fits" \
        --by sptype_num=-2,-1,0,1,2,3,4,5 --published mkresnet
done

# the paper's tables: DR10 alone, the paper's recipe and loss
stellar preprocess "$work/lamost" -o "$work/paper.fits" --recipe mkresnet \
    --labels "$labels" --overwrite
split=(--target sptype --group plan --set test=0.25 --set validation=0.1 --overwrite)
train() { # name, architecture, further options
    stellar train "$work/paper.fits" -o "$work/$1.safetensors" -m "$2" "${split[@]}" \
        "${@:3}"
    stellar predict "$work/paper.fits" -o "$work/$1.fits" --workers 1 --json \
        --model "$work/$1.safetensors" --overwrite |
        python -c "import json, sys; s = json.load(sys.stdin); print('$1:',
            round(1000 * s['seconds']['network'] / s['rows'], 2), 's per 1000 spectra')"
}
for kernel in 3 5 7 9; do
    train "kernel$kernel" mkresnet --preset paper --epochs 20 \
        --set network.width=0.25 --set "network.kernel=$kernel"
done
train nonparametric kernel
train adaboost adaboost --set network.share=0.1
train kmeans kmeans
python "$here/held_out.py" "$work/kernel5.safetensors" "$work/paper_truth.fits" \
    "$work/paper.fits"
stellar compare "$work"/kernel{3,5,7,9}.fits "$work/paper_truth.fits"
stellar compare "$work"/{kernel5,nonparametric,adaboost,kmeans}.fits \
    "$work/paper_truth.fits" --published mkresnet
