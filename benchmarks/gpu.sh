#!/usr/bin/env bash
# What results/ should have of an NVIDIA GPU, the most important first: benchmarks/gpu.sh [lockstep|training|accuracy]
# lockstep and training take at most nine minutes each, accuracy at most three hours. A command that fails or reaches
# its time limit does not stop the others, but the exit code is 1. It needs no internet: MNIST is read from the cache
# or from MNIST_DIR. TRY=1 tries every command on the CPU with small numbers and adds nothing to results/.
cd "$(dirname "$0")/.." || exit 1
if [[ ${TRY:-} ]]; then
  on=(--device cpu --dataset digits) steps=2 all_steps=4 epochs=1 reach=1 rounds=1 batches=16 seeds=1 limit=600
else
  on=(--device cuda --publish) steps=100 all_steps=500 epochs=3 reach=5 rounds=5 batches="64 512 2048" seeds=20 limit=
fi
failed=0
run() { timeout "${limit:-$1}" python -m "$2" "${on[@]}" "${@:3}" || { echo "failed: ${*:2}" >&2; failed=1; }; }

[[ $# -gt 0 ]] || set -- lockstep training accuracy
for part; do
  [[ $part =~ ^(lockstep|training|accuracy)$ ]] ||
    { echo "error: no part $part; choose lockstep, training or accuracy" >&2; exit 2; }
done
for part; do
  case $part in
    lockstep)
      run 100 lockstep --network net9954 --recipe reference --steps $steps --precision float64 --no-noise-floor
      run 100 lockstep --network net10040 --recipe tuned --steps $steps --precision float64 --no-noise-floor
      # PyTorch on the GPU, Flax on the CPU
      JAX_PLATFORMS=cpu run 120 lockstep --network net9954 --recipe reference --steps $steps --device auto --no-noise-floor
      run 100 lockstep --network net9954 --recipe reference --steps $all_steps --precision bitwise --no-noise-floor
      run 120 lockstep --network net9954 --recipe reference --steps $steps --precision float32 ;;
    training)
      run 160 benchmarks.training --steps $steps --epochs $epochs --rounds $rounds
      run 220 benchmarks.training --network net9808 --recipe tuned --contenders torch jax \
        --time-to-accuracy $reach --seeds $seeds
      run 80 benchmarks.training --network net10040 --recipe tuned --contenders torch jax --steps $steps --epochs 0 \
        --rounds $rounds --precision float32 bfloat16
      run 80 benchmarks.training --network net10040 --contenders torch jax --batches $batches ;;
    accuracy)
      short=(${TRY:+--epochs 1})
      for network in net10040 net9954 net9808; do
        run 3600 benchmarks.accuracy --network $network --seeds $seeds "${short[@]}"
      done ;;
  esac
done
exit $failed
