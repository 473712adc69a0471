#!/usr/bin/env bash
# SPFusion on simulated red-clump stars: the table of the README, three folds.
#   tests/benchmarks/red_clump.sh WORK_DIRECTORY [STARS] [EPOCHS] [PIXELS]
#
# The README's figures: 2100 stars, 6 epochs, images of 32 pixels instead of the paper's
# 128 (16 times as fast, the whole star and little of its surroundings); about 15 minutes
# of one core. The paper trains 150 epochs on 26 000 real stars.
set -euo pipefail
work=$1 stars=${2:-2100} epochs=${3:-6} pixels=${4:-32}
here=$(realpath "$(dirname "$0")")
mkdir -p "$work"
cd "$work"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

stellar fetch simulated --images -n "$stars" --seed 7 -o clump --no-gzip --overwrite \
    --labels-out '!truth.fits' --table '!paths.fits'
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

usual=(--preset paper --epochs "$epochs" --set "restart_epochs=$epochs" --overwrite
    --set batch_size=16 --set validation=0.12 --set half=false)
few=(--set network.drop_path=0.1) # these few steps don't overfit
eyes=(--set "network.image_size=$pixels")
narrow=(--set 'network.stem=[8,8,16]' --set 'network.widths=[16,32,64,128]')
cross() { # name, architecture, further options
    stellar train clump.fits -o "$1.safetensors" -m "$2" "${usual[@]}" --folds 3 "${@:3}"
    for fold in 0 1 2; do
        stellar predict clump.fits -o "$1.$fold.fits" -m "$1.fold$fold.safetensors" \
            --overwrite --quiet
    done
    python "$here/pool_folds.py" "$1" 3
}
cross both spfusion "${few[@]}" "${eyes[@]}"
cross spectrum convnext1d "${few[@]}"
cross image resnet10t "${narrow[@]}"
stellar compare {both,spectrum,image}.runs.csv --published spfusion
stellar compare both.fits spectrum.fits image.fits truth.fits --by snr=0,20,40,80,1000

# ablations, one split
for varied in star=true,false kernel=3,11 heads=4 ratio=2 metaformers=2; do
    stellar train clump.fits -o "${varied%%=*}.safetensors" -m spfusion "${usual[@]}" \
        "${few[@]}" "${eyes[@]}" --set test=0.333 --grid "network.$varied"
done
stellar compare {star,kernel,heads,ratio,metaformers}.runs.csv --published spfusion
