"""From versions of a repository to a folder: two Dockerfiles, a compose file, and the monitoring that goes with it.

Owns the list of files and the order of the work. Called by the command `docker`. Everything is checked and rendered
before the first file is written.

    1. Target: the one asked for, or the one that all versions were packaged for.
    2. Models: each version's files by their digests, and its config as the image's server reads it.
    3. Server: its command line, by what its objectives need to be exported.
    4. Files: the images, the stack, the rules and the dashboard.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from deploy.containers import dockerfiles, stack
from deploy.containers.served import ServedModel, served_model
from deploy.errors import UsageError
from deploy.files import disk_errors_explained, make_folder, write_atomically
from deploy.monitoring.dashboard import DashboardOptions, dashboard
from deploy.monitoring.export import latency_export, measure_for
from deploy.monitoring.objective import Objective
from deploy.monitoring.rules import RuleOptions, rule_groups, rules_file
from deploy.repository.find import read_manifest
from deploy.repository.layout import Version
from deploy.serve.flags import Production, production_flags
from deploy.targets import Target, all_targets, find_target
from deploy.yaml_text import yaml_text

Role = Literal["server", "packager", "prometheus", "grafana"]
ROLES: tuple[Role, ...] = get_args(Role)

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEADER = "# Rendered by `deployctl docker`: change what it is rendered from, and render it again.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerRequest:
    """What is rendered, where to, and for which target; None is the target that the versions were packaged for.

    `pins` are digests of the images by role, `sha256:...`; a role without one is pinned by its tag alone.
    """

    versions: tuple[Version, ...]
    output: Path
    target: str | None = None
    objectives: tuple[Objective, ...] = ()
    pins: Mapping[Role, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.versions:
            raise UsageError("no version was named", expected="at least one")
        names = [version.name for version in self.versions]
        if len(set(names)) < len(names):
            raise UsageError(
                f"two versions of one model were named: {', '.join(names)}",
                expected="one of each",
                fix="render a folder for each",
            )
        for role, digest in self.pins.items():
            if not _DIGEST.fullmatch(digest):
                raise UsageError(f"the digest of {role} is {digest!r}", expected="sha256: and 64 hexadecimal digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """Every file by its path below the output folder, for which target, and what the user should know."""

    target: Target
    files: dict[str, str]
    notes: tuple[str, ...]


def render(request: DockerRequest) -> Rendered:
    """The files of a request; nothing is written.

    Raises UsageError if the target has no image or cannot run a version, or a version is not what was published.
    """
    target = _target(request)  # 1
    measure = measure_for(histograms=target.latency_histograms)
    models = tuple(  # 2
        served_model(version, target, objectives=request.objectives, measure=measure) for version in request.versions
    )
    latency, quantiles = latency_export(request.objectives, measure=measure)  # 3
    line = Production(gpu=target.device == "cuda", latency=latency, quantiles=quantiles)
    rules = RuleOptions(scope=stack.SCOPE, measure=measure)
    files = {  # 4
        **_images(request, target, models, line),
        "compose.yaml": _yaml(stack.compose(_stack(request, target, models, line))),
        **_monitoring(request, target, rules, line),
    }
    return Rendered(target=target, files=files, notes=tuple(_notes(request, target, latency)))


def write(rendered: Rendered, output: Path) -> tuple[Path, ...]:
    """Write the files, each whole or not at all, over those of an earlier rendering. Gives back their paths."""
    paths = []
    make_folder(output)
    with disk_errors_explained(f"writing to {output}"):
        for name, text in rendered.files.items():
            write_atomically(output / name, text.encode())
            paths.append(output / name)
    return tuple(paths)


def _target(request: DockerRequest) -> Target:
    if request.target is not None:
        return _with_image(find_target(request.target))
    names = sorted({read_manifest(version).target.name for version in request.versions})
    if len(names) > 1:
        raise UsageError(
            f"the versions were packaged for {', '.join(names)}",
            expected="one target for one image",
            fix="name it with --target",
        )
    return _with_image(find_target(names[0]))


def _with_image(target: Target) -> Target:
    if target.container is None:
        able = [name for name, other in all_targets().items() if other.container]
        raise UsageError(
            f"target {target.name} has no image to build on",
            expected=f"the release that will serve, such as {', '.join(able[-3:])}",
            fix="name it with --target",
        )
    return target


def _images(request: DockerRequest, target: Target, models: Sequence[ServedModel], line: Production) -> dict[str, str]:
    assert target.container is not None
    server = stack.pinned(target.container, request.pins.get("server"))
    flags = production_flags(line)
    files = {
        "server.Dockerfile": dockerfiles.server_dockerfile(server, models, flags, http_port=line.ports.http),
        ".dockerignore": dockerfiles.dockerignore(),
        dockerfiles.DIGESTS_FILE: dockerfiles.digests(models),
    }
    files |= {f"{dockerfiles.MODELS_FOLDER}/{model.config_path}": model.config for model in models}
    if target.pytorch_container is not None:
        packager = stack.pinned(target.pytorch_container, request.pins.get("packager"))
        files["packager.Dockerfile"] = dockerfiles.packager_dockerfile(packager)
    return files


def _stack(request: DockerRequest, target: Target, models: Sequence[ServedModel], line: Production) -> stack.Stack:
    first = request.versions[0]
    return stack.Stack(
        name=f"{dockerfiles.image_name(first.name)}-serving",
        image=dockerfiles.server_tag(models),
        repository=os.path.relpath(first.repository, request.output),
        ports=line.ports,
        gpu=target.device == "cuda",
        unpacked_megabytes=sum(model.unpacked_megabytes for model in models),
        exit_seconds=line.exit_seconds,
        pins=dict(request.pins.items()),
    )


def _monitoring(request: DockerRequest, target: Target, rules: RuleOptions, line: Production) -> dict[str, str]:
    names = tuple(version.name for version in request.versions)
    shown = DashboardOptions(rules=rules, gpu=target.device == "cuda")
    groups = rule_groups(names, request.objectives, options=rules)
    files = {
        "prometheus.yaml": _yaml(stack.prometheus_config(line.ports)),
        "rules.yaml": _HEADER + rules_file(groups),
        "datasource.yaml": _yaml(stack.grafana_datasource()),
        "dashboards.yaml": _yaml(stack.grafana_provider()),
        "dashboards/triton.json": json.dumps(dashboard(names, request.objectives, options=shown), indent=2) + "\n",
    }
    return {f"{stack.MONITORING}/{name}": text for name, text in files.items()}


def _notes(request: DockerRequest, target: Target, latency: str) -> list[str]:
    notes = []
    if not request.objectives:
        notes.append("no objective is known: no alert watches latency; give --p99-ms or --slo, or run `deployctl slo`")
    if latency == "summaries":
        notes.append(
            f"{target.name} is not known to export latency histograms: summaries are used, which cost throughput and "
            "prove no more than a lower bound of the share that is slow (docs/monitoring.md)"
        )
    if target.pytorch_container is None:
        notes.append(f"no PyTorch image is known for {target.name}: no packager.Dockerfile was rendered")
    return notes


def _yaml(document: stack.Document) -> str:
    return _HEADER + yaml_text(document)
