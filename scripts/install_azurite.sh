#!/usr/bin/env bash
# Azurite, the emulator of Azure's blob storage by Azure's own makers, in the user's cache: pinned with all it needs, each
# by its SHA-512. 360 MB, a minute; wants Node 20 and its npm. Nothing is done where it is there already.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${DEPLOYCTL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/deployctl}
version=$(sed -n 's/.*"azurite": "\(.*\)".*/\1/p' requirements/azurite/package.json)
folder=$cache/azurite-$version
if [ -f "$folder/complete" ]; then exit 0; fi
if ! command -v npm > /dev/null; then
    echo "error: npm is not on PATH" >&2
    echo "  to do:    install Node 20 or newer, for example by 'apt-get install npm' as root" >&2
    exit 3
fi

rm -rf "$folder"
mkdir -p "$folder"
cp requirements/azurite/package.json requirements/azurite/package-lock.json "$folder"
# No package's own scripts are run: none is needed.
npm ci --prefix "$folder" --ignore-scripts --no-audit --no-fund --loglevel error
touch "$folder/complete"
echo "Azurite $version is in $folder"
