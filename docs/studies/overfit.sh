#!/usr/bin/env bash
# Whether detectors and segmenters can learn 20 photos by heart, as docs/results.md reports: run in a folder that holds
# coco20/ (images/ and a.json, in COCO's format) and camvid20/ (images/ and annotations/, each with equal training/ and
# validation/). Half an hour to 40 minutes each on one busy CPU core.
set -euo pipefail
export OMP_NUM_THREADS=1
vit=(--model vit_tiny_patch16_224 --model-kwargs '{"depth": 6}')
same=(--encoder none --batch-size 4 --drop-path 0 --jitter.scale 1 1 --jitter.no-flip --jitter.no-distort
  --optim.weight-decay 0.01 --no-deterministic --workers 0 --accelerator cpu)
detect=(fastmim detect --data coco20 --annotations a.json a.json --images images "${same[@]}" --image-size 256 320
  --steps 350 --optim.base-lr 0.064 --optim.clip-norm 1 --head.channels 64 --head.hidden 256 --head.regions 128
  --head.anchors 12 24 48 96 192)
segment=(fastmim segment --data camvid20 "${same[@]}" --image-size 176 240 --steps 600 --max-class-share 1
  --head.channels 64 --head.aux-channels 32 --head.dropout 0)

"${detect[@]}" --model resnet18 --out runs/overfit-detect-resnet18 --resume-or-begin
"${detect[@]}" "${vit[@]}" --out runs/overfit-detect-vit --resume-or-begin
"${segment[@]}" --model resnet18 --optim.base-lr 0.128 --out runs/overfit-segment-resnet18 --resume-or-begin
"${segment[@]}" "${vit[@]}" --optim.base-lr 0.064 --out runs/overfit-segment-vit --resume-or-begin
