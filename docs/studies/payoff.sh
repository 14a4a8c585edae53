#!/usr/bin/env bash
# What pre-training buys on CIFAR-10, as docs/results.md reports it: run in a folder that holds cifar10/train and
# cifar10/test (one folder a class). Hours on two CPU cores; finished fine-tuning runs are kept and not done again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export OMP_NUM_THREADS=1

for model in vit swin; do
  steps=$([ $model = vit ] && echo 5600 || echo 5000)
  fastmim pretrain --config "$here/cifar_$model.yaml" --out runs/$model --steps "$steps" --resume
  compare=(fastmim payoff --config "$here/cifar_finetune.yaml" --encoder runs/$model --seeds 3 --processes 2 --no-equal-time)
  "${compare[@]}" --shares 0.01 --out "runs/payoff-$model-1"
  "${compare[@]}" --shares 0.1 --epochs $([ $model = vit ] && echo 30 || echo 10) --out "runs/payoff-$model-10"
done

for target in hog pixels-norm; do # table 1b and figure 4: target and resolution, one seed
  for size in 24 32; do
    run=runs/$target-$size
    fastmim pretrain --config "$here/cifar_vit.yaml" --image-size $size --target.name $target --steps 1500 --out "$run" --resume
    fastmim finetune --config "$here/cifar_finetune.yaml" --encoder "$run" --labels 0.01 --out "$run-classes" --resume
  done
done
