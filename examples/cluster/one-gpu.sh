#!/usr/bin/env bash
# 50,000 images on one GPU. Interrupted or killed, the same command goes on.
set -euo pipefail
model=${MODEL:-runs/cifar10/model}

ddim sample --model "$model" -n 50000 --steps 20 --shard-size 1000 --output samples --log
ddim verify samples
