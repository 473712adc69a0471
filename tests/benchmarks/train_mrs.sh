#!/usr/bin/env bash
# Makes the ensemble mrs-sim, of simulated stars only, and the tables of RDN:
#     tests/benchmarks/train_mrs.sh WORK_DIRECTORY [STARS [EPOCHS]]
#
# On one core and with the defaults some 50 minutes: 10 of simulation, 2 for each network,
# of which nine make the ensemble, and 3 for StarNet. All learn from the same simulated
# stars; the errors of mrs-sim are calibrated on 1000 others, and the last commands
# measure on 1200 others with S/N 10 to 200. What is there already is kept: an interrupted
# run goes on.
set -euo pipefail
work=$1 stars=${2:-5000} epochs=${3:-5}
here=$(realpath "$(dirname "$0")")
mkdir -p "$work"
cd "$work"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

simulate() { # name, number, seed, options
    [ -e "$1.truth.fits" ] || stellar fetch simulated --survey lamost-mrs -n "$2" \
        --seed "$3" "${@:4}" -o "$1" --labels-out "$1.truth.fits" --overwrite
}
prepare() { # name, recipe
    [ -e "$1.$2.fits" ] || stellar preprocess "$1" -o "$1.$2.fits" --recipe "$2" \
        --rv measure --workers 1 --labels "$1.truth.fits"
}
# of a small run, too, so many that errors can be calibrated and compared
others=$((stars < 1000 ? stars : 1000))
simulate train "$stars" 21
simulate test $((others * 6 / 5)) 22 --snr 10:200
simulate calibration "$others" 23 --snr 8:250
for name in train test calibration; do prepare "$name" mrs; done

train() { # name, recipe, settings
    local name=$1 recipe=$2
    shift 2
    stellar train "train.$recipe.fits" -o "$name.safetensors" --config "$here/mrs.yaml" \
        --set "epochs=$epochs" --resume "$@"
    [ -e "$name.fits" ] || stellar predict "test.$recipe.fits" -o "$name.fits" \
        --model "$name.safetensors" --workers 1
}
# half the default's widths and positions, since a short training has more use of speed;
# and no average over neighbouring positions, which costs more (see EXPERIMENTS_MRS.md)
small=(--set network.width=16 --set network.growth=8)
rdn=("${small[@]}" --set "network.strides=[8, 4]" --set network.places=138)
rdn+=(--set "network.hidden=[40, 64]")
train ensemble mrs "${rdn[@]}" --set members=6
# some lose a label (see best_members.py)
train more mrs "${rdn[@]}" --set members=3 --set seed=2
python "$here/best_members.py" 6 ensemble.safetensors more.safetensors \
    best.safetensors
python "$here/calibrate.py" best.safetensors calibration.mrs.fits mrs-sim.safetensors
stellar predict test.mrs.fits -o mrs-sim.fits --model mrs-sim.safetensors --workers 1 \
    --overwrite
train starnet mrs --model starnet --set "network.hidden=[256, 128]"
train resnet mrs --model resnet --set network.stride=16 \
    --set "network.widths=[8, 16, 32, 64]"
train densenet mrs --model densenet --set network.stride=16 "${small[@]}"
for blocks in 3 1 2 4; do # the one with three is the ensemble's first member
    train "rdn$blocks" mrs "${rdn[@]}" --set "network.blocks=$blocks"
done
stellar compare rdn1.fits rdn2.fits rdn3.fits rdn4.fits test.truth.fits \
    -o blocks.md --overwrite
stellar compare rdn3.fits resnet.fits densenet.fits starnet.fits test.truth.fits \
    -o networks.md --overwrite
stellar compare mrs-sim.fits test.truth.fits --published rdn \
    --by snr=10,25,50,100,200 -o mrs-sim.md --overwrite
stellar compare --architectures rdn

# the paper's recipe, min-max instead of a continuum; and its average pooling
for name in train test; do prepare "$name" rdn; done
train minmax rdn "${rdn[@]}" --set network.level=0.5
train pooled mrs "${rdn[@]}" --set network.places=69
stellar compare rdn3.fits minmax.fits pooled.fits test.truth.fits -o recipes.md \
    --overwrite
