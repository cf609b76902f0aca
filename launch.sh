#!/usr/bin/env bash
# Set-up and every job:  ./launch.sh  |  ./launch.sh test [pytest flags]  |  ./launch.sh RECIPE|COMMAND [flags]
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

list() { # NAME and the first line of its file, of every file
  for file in "$@"; do
    case $file in */__init__.py) continue ;; esac
    printf '  %-15s %s\n' "$(basename "$file" .py)" "$(sed -n '1s/^"""//; 1s/"""$//; 1p' "$file")"
  done
}

usage() {
  cat <<'EOT'
./launch.sh                  set up, then the main job: LoRA on the embedded world (no network, no flags)
./launch.sh test [flags]     set up, then mypy and the whole test suite (flags go to pytest, and leave mypy out)
./launch.sh RECIPE [flags]   set up, then an experiment; ./launch.sh RECIPE --help lists its flags
./launch.sh COMMAND [flags]  set up, then `adapt COMMAND`
./launch.sh --help           this text

recipes:
EOT
  list recipes/*.py
  echo
  echo "commands:"
  list adapt/commands/*.py
  cat <<'EOT'

environment:
  ADAPT_PROCESSES=N   training processes (default: one per GPU, else 1)
  ADAPT_CACHE=DIR     where the embedded world is kept (default: ~/.cache/adapt)
  ADAPT_TORCH=cpu     with uv: install PyTorch's CPU build instead of the CUDA build (first set-up only)
EOT
}

# One .venv, made once and again whenever what it is made from changes; a lock lets two starts take turns.
set_up() {
  local stamp python
  stamp=$(cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1)
  [ "$(cat .venv/.stamp 2>/dev/null || true)" = "$stamp" ] && return
  exec 9>.venv.lock
  if command -v flock >/dev/null; then flock 9; fi
  [ "$(cat .venv/.stamp 2>/dev/null || true)" = "$stamp" ] && return
  echo "setting up .venv (once; some minutes, most of it PyTorch)" >&2
  for python in python3 python3.13 python3.12 python3.11; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    python=
  done
  [ -n "$python" ] || { echo "error: Python 3.11 or newer is needed; install it and start again" >&2; exit 2; }
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  if command -v uv >/dev/null || .venv/bin/python -m pip install -q uv; then
    PATH="$PATH:$PWD/.venv/bin" VIRTUAL_ENV="$PWD/.venv" \
      uv pip install -q ${ADAPT_TORCH:+--torch-backend "$ADAPT_TORCH"} -c constraints.txt -e '.[dev]'
  else
    .venv/bin/python -m pip install -q -c constraints.txt -e '.[dev]'
  fi
  echo "$stamp" >.venv/.stamp
  exec 9>&-
}

names() { basename -s .py "$@" | grep -v __init__ | paste -sd' '; }

job=${1:-lora}
[ $# -gt 0 ] && shift
job=${job%.py}
case $job in
  -h | --help | help) usage; exit 0 ;;
  test) ;;
  *)
    if [ -f "recipes/$job.py" ]; then
      program=("recipes/$job.py")
    elif [ -f "adapt/commands/$job.py" ]; then
      program=(-m adapt "$job")
    else
      echo "error: no recipe or command '$job'; there are: $(names recipes/*.py) $(names adapt/commands/*.py)" >&2
      exit 2
    fi
    ;;
esac

set_up
if [ "$job" = test ]; then
  export HF_HUB_OFFLINE=1
  if [ $# -eq 0 ]; then # flags choose some of the tests; without them everything is checked, types first
    echo "checking types with mypy"
    .venv/bin/python -m mypy
  fi
  exec .venv/bin/python -m pytest -n 2 "$@"
fi
for flag in "$@"; do
  # help needs no processes, and starting accelerate takes seconds
  case $flag in -h | --help) exec .venv/bin/python "${program[@]}" "$@" ;; esac
done
case $job in
  extract | predict) ;; # these share their work among processes
  *) [ "${program[0]}" != -m ] || exec .venv/bin/python "${program[@]}" "$@" ;;
esac
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  gpus=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c '[0-9]' || true)
else
  gpus=$(find /dev -maxdepth 1 -name 'nvidia[0-9]*' | wc -l)
fi
processes=${ADAPT_PROCESSES:-$((gpus > 1 ? gpus : 1))}
export ADAPT_PROCESSES=$processes
if [ "$processes" -gt 1 ] && [ "$gpus" -eq 0 ]; then
  # accelerate starts one process only when there is no GPU; torch's own launcher starts as many as asked
  export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  exec .venv/bin/python -m torch.distributed.run --nproc_per_node "$processes" "${program[@]}" "$@"
fi
share=$(($(getconf _NPROCESSORS_ONLN) / processes))
threads=${OMP_NUM_THREADS:-$((share > 1 ? share : 1))}
# --num_cpu_threads_per_process: accelerate would choose one thread and leave the other cores idle
# --quiet: a refusal stays one line, without the launcher's own traceback under it
exec .venv/bin/accelerate launch --quiet --num_processes "$processes" --num_machines 1 --mixed_precision no \
  --num_cpu_threads_per_process "$threads" --dynamo_backend no "${program[@]}" "$@"
