#!/usr/bin/env bash
# Any sequence of any other on real patients, and what is segmented when one is missing: UTAD-Net's teacher and student, from BraTS
# folders to pictures. Sized for 2 cores and a coffee (3 mm voxels, width 8, 1,500 rounds): the way, no result.
# Usage: bash examples/translation.sh BRATS_FOLDER OUTPUT
set -euo pipefail
patients=$(realpath "${1:?folder of BraTS patients}") out=${2:?output folder}
test="01657 01658 01659 01660 01661"
mkdir -p "$out/train" "$out/test"
for folder in "$patients"/*/; do
    id=$(basename "$folder")
    part=train
    [[ " $test " == *" ${id##*_} "* ]] && part=test
    ln -sfn "$folder" "$out/$part/$id"
done

sequences=flair,t1,t1ce,t2
[[ -e "$out/prepared/plan.json" ]] ||
    modistill prepare "$out/train" -o "$out/prepared" --modalities $sequences --available $sequences \
        --normalisation percentiles --spacing 3 3 3 --size 64 64 56 --fractions 1 0 0 --slices
arm() { # name, and more of its recipe
    local run="$out/runs/$1" how=("${@:2}")
    [[ -e "$run/checkpoints/index.json" ]] && how+=(--resume)
    modistill train "translation/$1" --data "$out/prepared" -o "$run" "${how[@]}" \
        --set "data.spacing_mm=[3, 3, 3]" --set "data.size=[64, 64, 56]" --set sampling.samples_per_case=1 --set method.width=8
}
slices=(--set "sampling.patch_size=[64, 64]" --set sampling.steps_per_epoch=150 --set training.epochs=10)
slices+=(--set method.critic_rounds=2 --set method.lr=0.001 --set "training.precision='32'")
arm utad_teacher "${slices[@]}"
arm utad_net "${slices[@]}"
arm segmentor --set "sampling.patch_size=[32, 32, 32]" --set sampling.steps_per_epoch=50 --set training.epochs=10 \
    --set method.stages=4 --set method.lr=0.1 --set method.momentum=0.9 --set "inference.window=[32, 32, 32]"

modistill translate -i "$out/test" --pairs -m "$out/runs/utad_net" -o "$out/translated" --overwrite # 12 volumes of each patient
modistill evaluate-translations "$out/translated" --reference "$out/test" --body-above 0 -o "$out/scores/translated.csv"
modistill picture "$out/test" "$out/translated" --pairs -o "$out/pairs.png"
for by in "$out/runs/utad_net" zero mean; do
    name=$(basename "$by")
    modistill predict -i "$out/test" -o "$out/completed/$name" --model "$out/runs/segmentor" --one-missing --complete-with "$by" --overwrite
    modistill evaluate "$out/completed/$name" --subsets --reference "$out/test" --run "$name" -o "$out/scores/$name.csv"
done
modistill predict -i "$out/test" -o "$out/complete" --model "$out/runs/segmentor" --overwrite
modistill evaluate "$out/complete" --reference "$out/test" --run segmentor -o "$out/scores/segmentor.csv"
