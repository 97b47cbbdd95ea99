#!/usr/bin/env bash
# Run the test suite with the kernels of several processors: scripts/test-processors.sh [REPEATS] [pytest's arguments]
#
# NumPy's OpenBLAS and torch choose their kernels by the processor, and sums of different kernels differ in their last
# bits. Each line is a run of scripts/test.sh with one choice of both, by default three of each. Every run draws a hash
# seed and a seed for hypothesis; its line begins with the command that repeats it. Exit status 1: a run has failed.
set -uo pipefail
cd "$(dirname "$0")/.."
repeats=3
if [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  repeats=$1
  shift
fi

flags=" $(grep -m 1 '^flags' /proc/cpuinfo 2>/dev/null) "
has() {
  local flag
  for flag in "$@"; do [[ $flags = *" $flag "* ]] || return 1; done
}
blas=("") aten=(default "") # "": the library's own choice
if has avx2 fma; then
  blas=(Haswell "${blas[@]}") aten=(default avx2 "")
fi
if has avx512f avx512cd avx512bw avx512dq avx512vl; then
  blas=(SkylakeX "${blas[@]}")
fi

drawn() { od -An -N4 -tu4 /dev/urandom | tr -d ' '; }
trap 'exit 130' INT
logs=$(mktemp -d)
failed=0
for ((repeat = 1; repeat <= repeats; repeat++)); do
  for core in "${blas[@]}"; do
    for capability in "${aten[@]}"; do
      variables=(HYPOTHESIS_PROFILE=random "PYTHONHASHSEED=$(drawn)")
      [ -z "$core" ] || variables+=("OPENBLAS_CORETYPE=$core")
      [ -z "$capability" ] || variables+=("ATEN_CPU_CAPABILITY=$capability")
      seed=--hypothesis-seed=$(drawn)
      log=$logs/$repeat-${core:-unset}-${capability:-unset}.log
      printf '%s ' "${variables[@]}" bash scripts/test.sh "$seed" "${@@Q}"
      if env -u OPENBLAS_CORETYPE -u ATEN_CPU_CAPABILITY "${variables[@]}" bash scripts/test.sh "$seed" "$@" >"$log" 2>&1; then
        status=ok
      else
        status=FAILED failed=1
      fi
      counts=$(grep -E ' in [0-9.]+s( |$)' "$log" | tail -n 1 | sed 's/^[= ]*//; s/[= ]*$//')
      echo ": $status, ${counts:-pytest gave no counts}"
      [ "$status" = ok ] && rm "$log" || grep -E '^(FAILED|ERROR) ' "$log"
    done
  done
done
if [ "$failed" = 1 ]; then
  echo "logs of runs that failed: $logs" >&2
else
  rmdir "$logs"
fi
exit "$failed"
