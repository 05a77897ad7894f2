#!/usr/bin/env bash
# The whole way on phantom patients, in minutes, on a laptop: cohort, preparation, teacher, pre-trained student, control and
# HAD-Net, prediction of patients who have no post-contrast T1, scores, comparison, pictures.
# Usage: bash examples/demo.sh FOLDER
set -euo pipefail
demo=${1:?give a folder}
rm -rf "$demo"

modistill phantom -o "$demo/patients" --cases 16 --shape 48 48 40 --seed 1
modistill phantom -o "$demo/new_patients" --cases 16 --shape 48 48 40 --seed 2 --without t1ce
modistill inspect "$demo/patients"
modistill prepare "$demo/patients" -o "$demo/prepared" --recipe demo/teacher --fractions 0.75 0.25 0

for arm in teacher student control had_net; do
    modistill train "demo/$arm" --data "$demo/prepared" -o "$demo/runs/$arm"
done

for run in control had_net; do
    modistill predict -i "$demo/new_patients" -o "$demo/predictions/$run" --model "$demo/runs/$run"
    modistill evaluate "$demo/predictions/$run" --reference "$demo/new_patients" --run "$run" -o "$demo/scores/$run.csv"
done
modistill picture "$demo/new_patients" "$demo"/predictions/{control,had_net} -o "$demo/predictions.png"
modistill compare "$demo"/scores/{control,had_net}.csv --control control -o "$demo/comparison.md"
