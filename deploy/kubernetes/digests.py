"""What stands between a server and a file that was not proven: the digests, and the check that runs before it starts.

Owns the script and its two lists. The lists lie in the manifests, not beside the files: whoever can change a file in a
store cannot change them. Needs a shell, coreutils, findutils and grep, which every -py3 image of Triton has.
"""

from deploy.containers.served import ServedModel
from deploy.files import sha256_bytes

CHECK_FILE = "check.sh"
SUMS_FILE = "models.sha256"
PATHS_FILE = "models.paths"
CONFIG_KEY = "config.pbtxt"

CHECK = r"""#!/bin/sh
# Ends with 1 unless the repository serves the files that were proven, and holds nothing else a server would load.
# usage: check.sh REPOSITORY LISTS MODEL NUMBER
set -eu
lists=$2 model=$3 number=$4
cd "$1"

refuse() {
    echo "error: $1" >&2
    exit 1
}

sha256sum --check --strict --quiet "$lists/models.sha256" ||
    refuse "the files of $model:$number are not those that were proven"
# A server loads every folder at the top, whatever it is called.
others=$(find . -mindepth 1 -maxdepth 1 ! -type f ! -name "$model")
[ -z "$others" ] || refuse "the repository holds more than $model: $others"
links=$(find "$model" -type l)
[ -z "$links" ] || refuse "links may point elsewhere tomorrow: $links"
# What was recorded of a version is never loaded; anything else that is not on the list might be.
unknown=$(
    for folder in "$model" "$model/warmup"; do
        [ ! -d "$folder" ] || find "$folder" -mindepth 1 -maxdepth 1 ! -type d
    done
    find "$model/$number" ! -type d ! -path "$model/$number/evidence/*"
)
unknown=$(printf '%s\n' "$unknown" | grep -v -x -F -f "$lists/models.paths" || true)
[ -z "$unknown" ] || refuse "not proven with $model:$number: $unknown"
echo "$model:$number: every file is the one that was proven"
"""


def lists(model: ServedModel) -> dict[str, str]:
    """The check and its lists, by file name."""
    files = sorted((file.path, file.sha256) for file in model.files)
    own = f"{model.version.name}/{model.version.number}"
    beside = (model.config_path, f"{own}/config.pbtxt", f"{own}/manifest.json")
    paths = [*(path for path, _ in files), *beside]
    return {
        CHECK_FILE: CHECK,
        SUMS_FILE: "".join(f"{digest}  {path}\n" for path, digest in files),
        PATHS_FILE: "".join(f"{path}\n" for path in sorted(paths)),
    }


def content_hash(files: dict[str, str]) -> str:
    """A short name for what a ConfigMap holds."""
    return sha256_bytes("".join(f"{name}\0{text}\0" for name, text in sorted(files.items())).encode())[:10]
