#!/usr/bin/env bash
# Everything that made stellarcli/data/spectrafm.safetensors and the README's figures
# on it:   tests/benchmarks/train_spectrafm.sh ../shared/data WORK_DIRECTORY
#
# A quarter of the LAMOST plans and of the MILES stars is never used: neither by the
# network nor by the emulator, whose interpolator is fitted again without those stars.
# About 40 minutes on one core: the simulations take most of it.
set -euo pipefail
data=$(realpath "$1") work=$2
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
    stellar preprocess "$3" -r "$2" -o "$work/$1.fits" --labels "$4" --overwrite
}
prepare lamost spectrafm "$work/lamost" "$labels"
prepare miles spectrafm "$work/miles" "$work/miles_labels.fits"
for name in blue window grid; do
    prepare "lamost_$name" "$here/spectrafm_recipe_$name.yaml" "$work/lamost" "$labels"
done

emulator=(--set "emulator=$work/emulator.npz")
stellar train -o "$work/first.safetensors" -c "$here/spectrafm_pretrain.yaml" \
    "${emulator[@]}" --set epochs=7 --set average=0.99 --overwrite
stellar train -o "$work/pretrained.safetensors" -c "$here/spectrafm_pretrain.yaml" \
    "${emulator[@]}" --init "$work/first.safetensors" --seed 2 --overwrite
stellar train "$work/lamost.fits" "$work/miles.fits" -o "$work/spectrafm.safetensors" \
    -c "$here/spectrafm_adapt.yaml" "${emulator[@]}" \
    --init "$work/pretrained.safetensors" --overwrite

for name in lamost miles; do
    stellar predict "$work/$name.fits" -o "$work/$name.params.fits" \
        --model "$work/spectrafm.safetensors" --overwrite
done
python "$here/score.py" "$work/lamost.params.fits" "$labels" "$work/spectrafm.safetensors"
for what in cuts lines speed; do
    python "$here/spectrafm_measures.py" "$work/spectrafm.safetensors" \
        "$work/lamost.fits" "$labels" "$what"
done

# the transfer: real labels of 3850-5000 Å, then N stars of 5130-5450 Å
python "$here/spectrafm_transfer.py" choose "$labels" "$work/transfer.fits"
stellar train "$work/lamost_blue.fits" -o "$work/blue.safetensors" \
    -c "$here/spectrafm_blue.yaml" --init "$work/pretrained.safetensors" --overwrite
cd "$work/transfer"
for n in 30 100 300 1000; do
    epochs=$((n == 1000 ? 6 : 4000 / n))
    common=(--labels "$work/transfer.fits" --select "use$n == 1" --target feh
        --set validation=0 --set batch_size=10 --set average=0.98 --set noise=0.7
        --set precision=float32 --epochs "$epochs" --overwrite)
    network=(-m spectrafm --set network.encoder=[128] --set network.context=96)
    stellar train "$work/lamost_window.fits" -o "tuned$n.safetensors" "${common[@]}" \
        --init "$work/blue.safetensors" --freeze tokens,trunk --set learning_rate=3e-4
    stellar train "$work/lamost_window.fits" -o "scratch$n.safetensors" "${common[@]}" \
        "${network[@]}" --set learning_rate=1e-3
    stellar train "$work/lamost_grid.fits" -o "full$n.safetensors" "${common[@]}" \
        -m perceptron --set learning_rate=3e-4
    stellar train "$work/lamost_grid.fits" -o "small$n.safetensors" "${common[@]}" \
        -m perceptron --set network.hidden=[128,64] --set learning_rate=1e-3
    pairs=()
    for name in tuned scratch full small; do
        table=$([ "$name" = full ] || [ "$name" = small ] && echo grid || echo window)
        stellar predict "$work/lamost_$table.fits" -o "$name$n.fits" \
            --model "$name$n.safetensors" --overwrite
        pairs+=("$name=$name$n.fits")
    done
    python "$here/spectrafm_transfer.py" score "$labels" "$work/transfer.fits" "$n" \
        "${pairs[@]}"
done
