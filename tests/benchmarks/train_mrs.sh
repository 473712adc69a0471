#!/usr/bin/env bash
# Makes the ensemble mrs-sim, of simulated stars only, and the tables of RDN:
#     tests/benchmarks/train_mrs.sh WORK_DIRECTORY [STARS [EPOCHS]]
#
# On one core and with the defaults about an hour: 5 minutes of simulation, 3 to 10 for
# each network, of which the ensemble has six. All learn from the same simulated stars;
# the last commands measure on 1200 others with S/N 10 to 200. What is there already is
# kept: an interrupted run goes on.
set -euo pipefail
work=$1 stars=${2:-5000} epochs=${3:-30}
here=$(realpath "$(dirname "$0")")
mkdir -p "$work"
cd "$work"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

simulate() { # name, number, seed, options
    [ ! -e "$1.fits" ] || return 0
    stellar fetch simulated --survey lamost-mrs -n "$2" --seed "$3" "${@:4}" \
        -o "$1" --labels-out "$1.truth.fits" --overwrite
    stellar preprocess "$1" -o "$1.fits" --recipe rdn --rv measure --workers 1 \
        --labels "$1.truth.fits"
}
simulate train "$stars" 21
simulate test 1200 22 --snr 10:200

train() { # name, settings
    local name=$1
    shift
    [ -e "$name.safetensors" ] || stellar train train.fits -o "$name.safetensors" \
        --config "$here/mrs.yaml" --set "epochs=$epochs" --resume "$@"
    [ -e "$name.fits" ] || stellar predict test.fits -o "$name.fits" \
        --model "$name.safetensors" --workers 1
}
for blocks in 1 2 3 4; do
    train "rdn$blocks" --set "network.blocks=$blocks" --set network.places=56
done
train resnet --model resnet
train densenet --model densenet
train starnet --model starnet --set "network.hidden=[256, 128]"
train mrs-sim --set members=6 --set network.places=56

stellar compare rdn1.fits rdn2.fits rdn3.fits rdn4.fits test.truth.fits \
    -o blocks.md --overwrite
stellar compare rdn3.fits resnet.fits densenet.fits starnet.fits test.truth.fits \
    -o networks.md --overwrite
stellar compare mrs-sim.fits test.truth.fits --published rdn \
    --by snr=10,25,50,100,200 -o mrs-sim.md --overwrite
stellar compare --architectures rdn
