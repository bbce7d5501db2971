#!/usr/bin/env bash
# What results/ should have of an NVIDIA GPU, the most important first: benchmarks/gpu.sh [parity|speed|seeds] ...
# parity takes about two minutes, speed about four, seeds half a minute a seed. A command that fails or reaches its
# time limit does not stop the others, but the exit code is 1. No internet is needed: MNIST is read from the cache or
# from MNIST_DIR. TRY=1 tries every command on the CPU with small numbers and adds nothing to results/.
cd "$(dirname "$0")/.." || exit 1
export XLA_PYTHON_CLIENT_PREALLOCATE=false  # PyTorch and JAX share the GPU
if [[ ${TRY:-} ]]; then
  on=(--device cpu --dataset digits) device=cpu publish=() steps=2 bitwise_steps=3 rounds=1 seeds=1 reach=1 epochs=(--epochs 1)
else
  on=(--device cuda) device=cuda publish=(--publish) steps=60 bitwise_steps=500 rounds=5 seeds=5 reach=3 epochs=()
fi
digest=0338215fc05ee6f298549d18c4bd05f909e8914606f97c2add63886b9af2ce9e  # README's
logs=$(mktemp -d)
failed=0

run() { timeout "${TRY:+9}$1" python -m "${@:2}" || { echo "failed: ${*:2}" >&2; failed=1; }; }
# The same beside others: parity asks for numbers, not for seconds.
beside() { { run "${@:2}"; exit $failed; } >"$logs/$1" 2>&1 & }
collect() { wait; cat "$logs"/*; ! grep -q '^failed' "$logs"/* || failed=1; rm -f "$logs"/*; }

parity() {
  for framework in torch jax; do
    beside digest-$framework 120 ${framework}_impl.train --network net9954 --dataset digits --epochs 2 \
      --precision bitwise --device $device --out "$logs/runs/$framework"
  done
  for network in "net9954 --recipe reference" "net10040 --recipe tuned"; do
    beside float64-${network%% *} 150 lockstep --network $network --steps $steps --no-noise-floor "${on[@]}" "${publish[@]}"
  done
  # PyTorch on the GPU, Flax on the CPU
  JAX_PLATFORMS=cpu beside float64-both 150 lockstep --network net9954 --recipe reference --steps $steps \
    --no-noise-floor "${on[@]/cuda/auto}" "${publish[@]}"
  JAX_PLATFORMS=cpu beside bitwise-both 200 lockstep --network net9954 --recipe reference --steps $steps \
    --precision bitwise --no-noise-floor "${on[@]/cuda/auto}" "${publish[@]}"
  beside bitwise 200 lockstep --network net9954 --recipe reference --steps $bitwise_steps --precision bitwise \
    --no-noise-floor "${on[@]}" "${publish[@]}"
  wait
  [[ $(grep -l "$digest" "$logs"/digest-* | wc -l) = 2 ]] || { echo "failed: the digest of README" >>"$logs/digest"; }
  rm -rf "$logs/runs"
  collect
}

speed() {
  run 150 benchmarks.training --network net10040 --steps $((2 * steps)) --rounds $rounds --precision float32 bfloat16 \
    "${on[@]}" "${publish[@]}"
  run 100 benchmarks.training --network net17816 --recipe fast --contenders torch jax --time-to-accuracy $reach \
    --seeds $seeds "${on[@]}" "${publish[@]}"
}

seeds() {
  for network in net10040 net9954 net9808; do
    run $((seeds * 60)) benchmarks.accuracy --network $network --seeds $seeds "${epochs[@]}" "${on[@]}" "${publish[@]}"
  done
}

[[ $# -gt 0 ]] || set -- parity speed seeds
for part; do
  [[ $part =~ ^(parity|speed|seeds)$ ]] || { echo "error: no part $part; choose parity, speed or seeds" >&2; exit 2; }
done
for part; do "$part"; done
rm -rf "$logs"
exit $failed
