#!/usr/bin/env bash
# SPFusion on simulated red-clump stars, three folds: the tables of the README.
#   tests/benchmarks/red_clump.sh WORK_DIRECTORY [PART] [STARS] [EPOCHS] [PIXELS]
#
# PART: table      spectrum, images and both; the compared networks; by S/N (default)
#       ablations  the paper's tables 3 to 7: star operator, kernel, ratio, heads,
#                  Metaformer blocks, each beside the usual network
#       all        one after the other
# Stars are simulated once, and a run that was interrupted goes on where it was. Other
# values of the ablations: ABLATIONS="star=false kernel=3" red_clump.sh ...
#
# The README's figures: 2100 stars, images of 32 pixels instead of the paper's 128 (16
# times as fast, the whole star and little of its surroundings), 6 epochs: about 25
# minutes of one core for the table, an hour for the ablations. The paper trains 150
# epochs on 26 000 real stars.
set -euo pipefail
work=$1 part=${2:-table} stars=${3:-2100} epochs=${4:-6} pixels=${5:-32}
case $part in table | ablations | all) ;; *)
    echo "there is no part '$part': choose table, ablations or all" >&2
    exit 2
    ;;
esac
here=$(realpath "$(dirname "$0")")
mkdir -p "$work"
cd "$work"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

simulate() {
    stellar fetch simulated --images -n "$stars" --seed 7 -o clump --no-gzip \
        --overwrite --labels-out '!truth.fits' --table '!paths.fits'
    cat >recipe.yaml <<YAML
name: spfusion$pixels
steps:
  - bridge
  - rest_frame
  - resample: {grids: [{kind: log10, step: 1.0e-4, start: 4000.0, pixels: 3522}]}
  - min_max
  - pad: {pixels: 3584}
  - images: {bands: [g, r, i], size: $pixels}
YAML
    stellar preprocess clump -o clump.fits -r recipe.yaml --images paths.fits \
        --labels truth.fits --overwrite --quiet
}

usual=(--preset paper --folds 3 --epochs "$epochs" --set "restart_epochs=$epochs"
    --set batch_size=16 --set validation=0.12 --set half=false --resume)
few=(--set network.drop_path=0.1) # these few steps don't overfit
eyes=(--set "network.image_size=$pixels")
narrow=(--set 'network.stem=[8,8,16]' --set 'network.widths=[16,32,64,128]')

train() { # name, architecture, further options
    stellar train clump.fits -o "$1.safetensors" -m "$2" "${usual[@]}" "${@:3}"
}
pool() { # name: what the folds' models say about the stars that they hadn't seen
    for fold in 0 1 2; do
        stellar predict clump.fits -o "$1.$fold.fits" -m "$1.fold$fold.safetensors" \
            --overwrite --quiet
    done
    python "$here/pool_folds.py" "$1" 3
}

table() {
    train both spfusion "${few[@]}" "${eyes[@]}"
    train spectrum convnext1d "${few[@]}"
    train image resnet10t "${narrow[@]}"
    train racnet racnet
    train sscnn sscnn
    stellar compare {both,spectrum,image,racnet,sscnn}.runs.csv --published spfusion
    for name in both spectrum image; do pool "$name"; done
    stellar compare both.fits spectrum.fits image.fits truth.fits --by snr=0,20,40,80,1000
}

ablations() {
    usually="star=false kernel=3,11 ratio=2,3,5 heads=2,4,7 metaformers=2,3"
    read -ra varied <<<"${ABLATIONS:-$usually}"
    train usual spfusion "${few[@]}" "${eyes[@]}"
    for one in "${varied[@]}"; do
        train "${one%%=*}" spfusion "${few[@]}" "${eyes[@]}" --grid "network.$one"
    done
    stellar compare usual.runs.csv "${varied[@]/%=*/.runs.csv}" --published spfusion
    python "$here/fold_differences.py" usual.runs.csv "${varied[@]/%=*/.runs.csv}"
}

[[ -f clump.fits ]] || simulate
if [[ $part != ablations ]]; then table; fi
if [[ $part != table ]]; then ablations; fi
