"""The two images as Dockerfiles: one that serves versions of a repository, one that packages for the same target.

Owns their text. Called by render. Both need BuildKit: files come from named contexts, so that nothing is copied
beside the Dockerfiles first.
"""

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import PurePosixPath

from deploy.containers.served import ServedModel
from deploy.serve.flags import EXECUTABLE

DIGESTS_FILE = "models.sha256"
MODELS_FOLDER = "models"
UID = 1000
HEALTH = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}/v2/health/ready', timeout=4)"
"""Python lies in every -py3 image, whether or not curl does; an answer other than 200 raises."""

_ABOUT = "# Rendered by `deployctl docker`: change what it is rendered from, and render it again."


def server_dockerfile(image: str, models: Sequence[ServedModel], flags: Sequence[str], *, http_port: int) -> str:
    """An image of `image` and the models, served with `flags`.

    Its build fails if a file of the repository is no longer the one that was proven. Expects the contexts `.` (what
    was rendered) and `repository`.
    """
    lines = [
        "# syntax=docker/dockerfile:1",
        _ABOUT,
        f"#   docker build --file server.Dockerfile --build-context repository=REPOSITORY --tag {server_tag(models)} .",
        f"FROM {image}",
        "",
        *_labels(models),
        "# Owned by root and writable by nobody: what serves cannot change what is served.",
        *_copies(models),
        f"COPY --chown=0:0 --chmod=0555 {MODELS_FOLDER} /models",
        f"COPY --chown=0:0 --chmod=0444 {DIGESTS_FILE} /opt/deployctl/{DIGESTS_FILE}",
        "WORKDIR /models",
        "# What was rendered from is what is built: each file by its digest.",
        f"RUN sha256sum --check --strict --quiet /opt/deployctl/{DIGESTS_FILE}",
        *_python_needs(models),
        "",
        "# The image's own user `triton-server`. It writes to /tmp alone, and loads an archive's library from there:",
        "# with a read-only root give it a /tmp that is writable and not noexec.",
        f"USER {UID}:{UID}",
        "EXPOSE 8000 8001 8002",
        "HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \\",
        f'    CMD ["python3", "-c", "{HEALTH.format(port=http_port)}"]',
        "# A signal ends the server and not a shell; requests that run have --exit-timeout-secs to end.",
        f'ENTRYPOINT ["{EXECUTABLE}"]',
        "CMD [ \\",
        ", \\\n".join(f'    "{flag}"' for flag in flags) + " \\",
        "]",
    ]
    return "\n".join(lines) + "\n"


def packager_dockerfile(image: str) -> str:
    """An image of `image`, whose torch is the one of the server's image, with deployctl in it.

    Its build fails if installing deployctl changed torch. Expects the context `deployctl`: its source.
    """
    version = "python3 -c 'import torch; print(torch.__version__)'"
    lines = [
        "# syntax=docker/dockerfile:1",
        _ABOUT,
        "#   docker build --file packager.Dockerfile --build-context deployctl=SOURCE --tag deployctl-packager .",
        f"FROM {image}",
        "",
        'SHELL ["/bin/bash", "-o", "pipefail", "-c"]',
        "# hadolint ignore=DL3022",
        "COPY --from=deployctl pyproject.toml README.md LICENSE /opt/deployctl/",
        "# hadolint ignore=DL3022",
        "COPY --from=deployctl deploy /opt/deployctl/deploy",
        "# An archive runs on the torch that compiled it: the image's own, which no dependency may replace.",
        f'RUN before="$({version})" \\',
        "    && pip install --no-cache-dir /opt/deployctl \\",
        f'    && test "$({version})" = "$before"',
        "",
        f"RUN install --directory --owner={UID} --group={UID} /work /home/deployctl",
        "ENV HOME=/home/deployctl",
        f"USER {UID}:{UID}",
        "WORKDIR /work",
        'ENTRYPOINT ["deployctl"]',
        'CMD ["--help"]',
    ]
    return "\n".join(lines) + "\n"


def digests(models: Sequence[ServedModel]) -> str:
    """The list that `sha256sum --check` reads in /models: every file from the repository."""
    files = sorted((file for model in models for file in model.files), key=lambda file: file.path)
    return "".join(f"{file.sha256}  {file.path}\n" for file in files)


def dockerignore() -> str:
    """Only what was rendered for the image goes to the builder."""
    return f"*\n!{MODELS_FOLDER}\n!{DIGESTS_FILE}\n"


def server_tag(models: Sequence[ServedModel]) -> str:
    """What the server's image is called: after the first model and its version."""
    return f"{image_name(models[0].version.name)}-server:{models[0].version.number}"


def image_name(model: str) -> str:
    """A model's name as images and compose projects may be called: small letters, digits and single hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")


def _labels(models: Sequence[ServedModel]) -> list[str]:
    """Which versions are inside, by the digests that their attestations and signatures are keyed by."""
    return [
        f'LABEL io.deployctl.version.{model.version.name}="{model.version.number}@sha256:{model.digest}"'
        for model in models
    ]


def _python_needs(models: Sequence[ServedModel]) -> list[str]:
    """What the steps in Python need and the image lacks: the very Pillow or tokenizers that they were proven with.

    numpy is there already, in the release that the server's python backend was built for.
    """
    lines = []
    for package in ("pillow", "tokenizers"):
        versions = sorted({needed for model in models if (needed := model.manifest.artifact.get(package))})
        lines += [f"RUN python3 -m pip install --no-cache-dir {package}=={version}" for version in versions[-1:]]
    return lines


def _copies(models: Sequence[ServedModel]) -> list[str]:
    """One COPY per folder of the image."""
    paths = sorted(PurePosixPath(file.path) for model in models for file in model.files)
    lines = []
    for folder, inside in groupby(paths, key=lambda path: path.parent):
        files = " ".join(str(path) for path in inside)
        # hadolint knows stages, and no named contexts.
        lines += [
            "# hadolint ignore=DL3022",
            f"COPY --from=repository --chown=0:0 --chmod=0555 {files} /models/{folder}/",
        ]
    return lines
