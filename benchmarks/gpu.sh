#!/usr/bin/env bash
# What results/ should have of an NVIDIA GPU, the most important first: benchmarks/gpu.sh [lockstep|training|accuracy]
# Each part takes less than 10 minutes, accuracy an hour. A command that fails does not stop the others.
cd "$(dirname "$0")/.." || exit 1
run() { timeout "$1" python -m "${@:2}" --device cuda --publish || echo "failed: ${*:2}" >&2; }

[[ $# -gt 0 ]] || set -- lockstep training accuracy
for part; do
  case $part in
    lockstep)
      for precision in float64 float32; do
        run 120 lockstep --network net10040 --recipe tuned --steps 100 --precision $precision
        run 120 lockstep --network net9954 --recipe reference --steps 100 --precision $precision
      done ;;
    training)
      run 240 benchmarks.training --steps 50 --epochs 3
      run 120 benchmarks.training --network net10040 --recipe tuned --contenders torch jax --time-to-accuracy 6 19
      run 120 benchmarks.training --network net10040 --recipe tuned --contenders torch jax --precision float32 bfloat16
      run 120 benchmarks.training --network net10040 --contenders torch jax --batches 64 512 2048 ;;
    accuracy) run 3600 benchmarks.accuracy --network net10040 --seeds 20 ;;
  esac
done
