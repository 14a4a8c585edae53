#!/usr/bin/env bash
# Detection and segmentation, pre-trained against from scratch, as docs/results.md reports them: run in a folder that
# holds bccd/ (blood cells, in COCO's layout) and camvid/ (street scenes, images/ and annotations/). Finished runs are
# kept and not done again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export OMP_NUM_THREADS=1

fastmim pretrain --config "$here/dense_pretrain.yaml" --data bccd/train2017 --steps "${BCCD_STEPS:-600}" \
  --out runs/bccd --resume-or-begin &
fastmim pretrain --config "$here/dense_pretrain.yaml" --data camvid/images/training --steps "${CAMVID_STEPS:-600}" \
  --out runs/camvid --resume-or-begin &
wait
compare=(--shares 1 --seeds 3 --processes 2 --no-equal-time)
fastmim payoff --task detect --config "$here/bccd_detect.yaml" --encoder runs/bccd --data bccd --steps 350 \
  --out runs/payoff-bccd "${compare[@]}"
fastmim payoff --task segment --config "$here/camvid_segment.yaml" --encoder runs/camvid --data camvid --steps 400 \
  --out runs/payoff-camvid "${compare[@]}"
