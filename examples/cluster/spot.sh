#!/usr/bin/env bash
# A spot machine without a file system in common: draw a share into a local folder, copy what is
# finished away now and then, and bring it back first, so that a new machine goes on where the last
# one was taken. Set PUT and GET to the commands that copy folders to and from your object store.
set -euo pipefail
index=$1 count=$2
part="part-$index"
put=${PUT:?a command that copies a folder to the store} get=${GET:?a command that brings it back}

mkdir -p "$part"
$get "$part" || true  # the first machine finds nothing
ddim sample --model "${MODEL:-runs/cifar10/model}" -n 50000000 --steps 20 --shard-size 10000 \
  --shard "$index/$count" --output "$part" --log &
drawing=$!
# A spot machine's notice comes as SIGTERM to this script: ddim keeps what it has drawn and ends.
trap 'kill -TERM "$drawing"' TERM INT
while kill -0 "$drawing" 2>/dev/null; do
  sleep "${EVERY:-300}" & wait $! || true
  $put "$part" || true  # the store may be late; the next time comes
done
status=0
wait "$drawing" || status=$?
$put "$part"
exit "$status"
# Afterwards, anywhere: ddim merge part-* --output samples && ddim verify samples
