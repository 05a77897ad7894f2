#!/usr/bin/env bash
# The whole way on real patients: BraTS folders in, a table of results out. Test patients lose their t1ce file before anything
# reads them. Sized for 2 cores and a lunch break (2 mm voxels, width 8); brats/* are the paper's recipes.
# Usage: bash examples/brats.sh BRATS_FOLDER OUTPUT
set -euo pipefail
patients=$(realpath "${1:?folder of BraTS patients}") out=${2:?output folder}
test="01657 01658 01659 01660 01661"
mkdir -p "$out/train" "$out/test" "$out/reference"
for folder in "$patients"/*/; do
    id=$(basename "$folder")
    if [[ " $test " == *" ${id##*_} "* ]]; then
        mkdir -p "$out/test/$id" "$out/reference/$id"
        for name in flair t1 t2; do ln -sfn "$folder${id}_$name.nii.gz" "$out/test/$id/"; done   # no t1ce, no labels
        for name in flair t1 t1ce t2 seg; do ln -sfn "$folder${id}_$name.nii.gz" "$out/reference/$id/"; done
    else
        ln -sfn "$folder" "$out/train/$id"
    fi
done

modistill inspect "$out/train"
grid=(--set "data.spacing_mm=[2, 2, 2]" --set "data.size=[80, 96, 80]")
[[ -e "$out/prepared/plan.json" ]] ||
    modistill prepare "$out/train" -o "$out/prepared" --recipe demo/teacher \
        --spacing 2 2 2 --size 80 96 80 --fractions 1 0 0
arm() { # name epochs
    local run="$out/runs/$1" how=()
    [[ -e "$run/checkpoints/index.json" ]] && how=(--resume)
    modistill train "demo/$1" --data "$out/prepared" -o "$run" "${grid[@]}" --set "training.epochs=$2" "${how[@]}"
}
arm teacher "${EPOCHS:-60}"
arm student "${EPOCHS:-60}"
arm control "${EPOCHS_2:-30}"
arm had_net "${EPOCHS_2:-30}"

for run in student control had_net; do
    modistill predict -i "$out/test" -o "$out/predictions/$run" --model "$out/runs/$run" --overwrite
done
modistill predict -i "$out/reference" -o "$out/predictions/teacher" --model "$out/runs/teacher" --overwrite # it may see t1ce
for run in student control had_net teacher; do
    modistill evaluate "$out/predictions/$run" --reference "$out/reference" --run "$run" -o "$out/scores/$run.csv"
done
modistill compare "$out"/scores/{control,student,had_net,teacher}.csv --control control -o "$out/comparison.md"
