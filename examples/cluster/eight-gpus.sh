#!/usr/bin/env bash
# One machine with eight GPUs: train, draw, measure. --max-restarts starts again what died.
set -euo pipefail
run=${RUN:-runs/cifar10}

torchrun --standalone --nproc-per-node 8 --max-restarts 3 -m -- \
  ddim train --preset cifar10 --resume --output "$run" --log
torchrun --standalone --nproc-per-node 8 --max-restarts 3 -m -- \
  ddim sample --model "$run/model" -n 50000 --steps 20 --shard-size 1000 --output samples --log
torchrun --standalone --nproc-per-node 8 -m -- \
  ddim evaluate --model "$run/model" --data cifar10 -n 50000 --steps 10,20,50 --output quality
