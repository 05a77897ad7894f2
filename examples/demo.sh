#!/usr/bin/env bash
# The whole way on a phantom, in minutes, on a laptop: cohort, preparation, teacher, control, HAD-Net, prediction of patients
# who have no post-contrast T1, scores, comparison. Usage: bash examples/demo.sh FOLDER
set -euo pipefail
demo=${1:?give a folder}
rm -rf "$demo"

modistill phantom -o "$demo/patients" --cases 20 --shape 64 64 48 --seed 1
modistill phantom -o "$demo/new_patients" --cases 16 --shape 64 64 48 --seed 2 --without t1ce
modistill inspect "$demo/patients"
modistill prepare "$demo/patients" -o "$demo/prepared" --recipe demo/teacher --fractions 0.8 0.2 0 --seed 1

modistill train demo/teacher --data "$demo/prepared" -o "$demo/runs/teacher"
modistill train demo/control --data "$demo/prepared" -o "$demo/runs/control"
modistill train demo/had_net --data "$demo/prepared" -o "$demo/runs/had_net"

for run in control had_net; do
    modistill predict -i "$demo/new_patients" -o "$demo/predictions/$run" --model "$demo/runs/$run"
    modistill evaluate "$demo/predictions/$run" --reference "$demo/new_patients" --run "$run" -o "$demo/scores/$run.csv"
done
modistill compare "$demo/scores/control.csv" "$demo/scores/had_net.csv" --control control -o "$demo/comparison.md"
