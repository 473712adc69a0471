#!/usr/bin/env bash
# Everything that made stellarcli/data/spectrafm.safetensors and the README's figures
# on it:   tests/benchmarks/train_spectrafm.sh ../shared/data WORK_DIRECTORY [quick]
#
# `quick` goes through all of it with next to no training, to see that every line works.
# A quarter of the LAMOST plans and of the MILES stars is never used: neither by the
# network nor by the emulator, whose interpolator is fitted again without those stars.
# About an hour and a half on one core.
set -euo pipefail
mkdir -p "$2"
data=$(realpath "$1") work=$(realpath "$2")
here=$(realpath "$(dirname "$0")")
mkdir -p "$work/lamost" "$work/data/emulator" "$work/transfer"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
labels="$data/lamost-dr10/train_labels.fits"

[ -e "$work/lamost/.done" ] || tar xJf "$data/lamost-dr10/train.tar.xz" -C "$work/lamost"
touch "$work/lamost/.done"
ln -sfn "$data/lamost-dr10" "$work/data/lamost-dr10"
ln -sfn "$data/miles" "$work/data/miles"
python "$here/fit_interpolator.py" "$data" -o "$work/data/emulator/miles_tgm.fits"
python "$here/fit_emulator.py" "$work/data" -o "$work/emulator.npz"
python "$here/miles_files.py" "$data/miles/miles_train.fits" -o "$work/miles" \
    --labels-out "$work/miles_labels.fits"

prepare() { # name, recipe, inputs, labels
    # auto: where files have no velocity, as those of LAMOST MRS, `predict` measures it
    stellar preprocess "$3" -r "$2" -o "$work/$1.fits" --labels "$4" --rv auto --overwrite
}
prepare lamost spectrafm "$work/lamost" "$labels"
prepare miles spectrafm "$work/miles" "$work/miles_labels.fits"
for name in blue window grid; do
    prepare "lamost_$name" "$here/spectrafm_recipe_$name.yaml" "$work/lamost" "$labels"
done

emulator=(--set "emulator=$work/emulator.npz")
few=() once=() folds=()
if [ "${3:-}" = quick ]; then
    once=(--epochs 1) folds=(--folds 2)
    few=(--epochs 1 --set pool=2)
    for name in lamost-lrs lamost-mrs apogee miles optical; do
        few+=(--set "stream.$name=32")
    done
fi
stellar train -o "$work/first.safetensors" -c "$here/spectrafm_pretrain.yaml" \
    "${emulator[@]}" --epochs 7 --set average=0.99 "${few[@]}" --overwrite
stellar train -o "$work/second.safetensors" -c "$here/spectrafm_pretrain.yaml" \
    "${emulator[@]}" --init "$work/first.safetensors" --seed 2 "${few[@]}" --overwrite
stellar train -o "$work/pretrained.safetensors" \
    -c "$here/spectrafm_pretrain_long.yaml" "${emulator[@]}" \
    --init "$work/second.safetensors" "${few[@]}" --overwrite
# Four folds of what the test part leaves, then all of it: the errors of the last model
# are those of what the folds hadn't seen, whole and cut.
stellar train "$work/lamost.fits" "$work/miles.fits" -o "$work/spectrafm.safetensors" \
    -c "$here/spectrafm_adapt.yaml" "${emulator[@]}" \
    --init "$work/pretrained.safetensors" --refit "${few[@]}" "${folds[@]}" --overwrite

# On the spectra that none of it has seen, beside the models made for one instrument.
# (`default` has learnt from all plans: name default.folds.fits in DEFAULT_FOLDS, which
# train_default.sh leaves, with predictions of spectra that its folds hadn't seen. The
# templates of `default` are of all MILES stars, too.)
stellar fetch simulated --survey lamost-mrs -n 128 --seed 902 --no-gzip \
    --range feh=-2:0.5 -o "$work/mrs" --labels-out "$work/mrs_labels.fits" --overwrite
stellar fetch simulated --survey apogee -n 192 --seed 901 --no-gzip \
    -o "$work/apogee" --labels-out "$work/apogee_labels.fits" --overwrite
for name in lamost miles mrs apogee; do
    stellar predict "$work/$name" -o "$work/$name.params.fits" \
        --model "$work/spectrafm.safetensors" --overwrite
done
stellar predict "$work/mrs" -o "$work/mrs.rdn.fits" --model mrs-sim --overwrite
stellar predict "$work/miles" -o "$work/miles.default.fits" --model default --overwrite
python "$here/spectrafm_transfer.py" choose "$labels" "$work/transfer/stars.fits"
stellar compare "$work/lamost.params.fits" ${DEFAULT_FOLDS:+"$DEFAULT_FOLDS"} \
    "$work/transfer/stars.fits" --target teff,logg,feh --select "tested == 1"
stellar compare "$work/miles.params.fits" "$work/miles.default.fits" \
    "$work/miles_labels.fits" --select "part == 'test' and 4000 < teff < 8400"
stellar compare "$work/mrs.params.fits" "$work/mrs.rdn.fits" "$work/mrs_labels.fits" \
    --target teff,logg,feh
stellar compare "$work/apogee.params.fits" "$work/apogee_labels.fits"
python "$here/score.py" "$work/lamost.params.fits" "$labels" "$work/spectrafm.safetensors"
for what in cuts lines speed; do
    python "$here/spectrafm_measures.py" "$work/spectrafm.safetensors" \
        "$work/lamost.fits" "$labels" "$what"
done

unseen=("$work"/spectrafm.fold?.safetensors) # each predicts what it hadn't learnt from
python "$here/spectrafm_measures.py" "$(IFS=,; echo "${unseen[*]}")" \
    "$work/lamost.fits" "$labels" cuts

# Patches against pixels, from scratch.
for tokens in "patches 180" "pixels 180" "pixels 512"; do
    read -r kind context <<< "$tokens"
    name="$work/$kind$context"
    stellar train "$work/lamost.fits" -o "$name.safetensors" \
        -c "$here/spectrafm_tokens.yaml" --set "network.tokens=$kind" \
        --set "network.context=$context" "${once[@]}" --overwrite
    stellar predict "$work/lamost.fits" -o "$name.fits" --model "$name.safetensors" \
        --overwrite
    stellar compare "$name.fits" "$work/transfer/stars.fits" --target teff,logg,feh \
        --select "tested == 1"
done

# The transfer: real labels of 3850-5000 Å, then N stars of 5130-5450 Å, where no real
# label has been seen. Whatever N is: 100 steps for the pre-trained network's last layers,
# 1200 for the same network from scratch, 400 for the fully connected one. These settings
# were chosen on metal-rich training stars and MILES's metal-poor ones.
stellar train "$work/lamost_blue.fits" -o "$work/blue.safetensors" \
    -c "$here/spectrafm_blue.yaml" "${emulator[@]}" \
    --init "$work/pretrained.safetensors" "${once[@]}" --overwrite
cd "$work/transfer"
for set in $([ "${3:-}" = quick ] && echo 30_1 || python "$here/spectrafm_transfer.py" sets); do
    n=${set%_*}
    common=(--labels stars.fits --select "use$set == 1" --target feh --seed "${set#*_}"
        --set validation=0 --set batch_size=10 --set average=0.98 --set noise=0.7
        --set precision=float32 --overwrite)
    network=(-m spectrafm --set "network.encoder=[128]" --set network.context=96)
    stellar train "$work/lamost_window.fits" -o "tuned$set.safetensors" "${common[@]}" \
        -c "$here/spectrafm_tune.yaml" --init "$work/blue.safetensors" \
        --epochs $((1000 / n)) "${once[@]}"
    stellar train "$work/lamost_window.fits" -o "scratch$set.safetensors" \
        "${common[@]}" "${network[@]}" --set learning_rate=1e-3 --epochs $((12000 / n)) \
        "${once[@]}"
    stellar train "$work/lamost_grid.fits" -o "connected$set.safetensors" \
        "${common[@]}" -m perceptron --set learning_rate=3e-4 --epochs $((4000 / n)) \
        "${once[@]}"
    for name in tuned scratch connected; do
        table=$([ "$name" = connected ] && echo grid || echo window)
        stellar predict "$work/lamost_$table.fits" -o "$name$set.fits" \
            --model "$name$set.safetensors" --overwrite
    done
    for some in poor rich; do
        stellar compare "tuned$set.fits" "scratch$set.fits" "connected$set.fits" \
            stars.fits --target feh --select "$some == 1"
    done
done
python "$here/spectrafm_transfer.py" curve stars.fits curve.png tuned scratch connected
