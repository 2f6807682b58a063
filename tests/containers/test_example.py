"""docker/ is what is rendered, tools of others find nothing in it, its parts agree, and what it copies can be served.

Each linter is shown an input that it refuses. No image is built: the instructions that matter are carried out here.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.containers.render import DockerRequest, render, write
from deploy.monitoring.dashboard import DATASOURCE
from deploy.monitoring.objective import Objective
from deploy.repository.layout import Version
from deploy.repository.protobuf import format_config, parse_config
from deploy.serve import local
from deploy.serve.engines import Engine
from deploy.serve.ports import WantedPorts, choose_ports
from tests.containers.example import NAME, OUTPUT, example
from tests.markdown import ROOT
from tests.monitoring.promtool import promtool
from tests.repository.samples import Sample
from tests.serve.production import known_flags, started
from tests.serve.tiny import Linear, publish

YAML_FILES = sorted(path for path in OUTPUT.rglob("*.yaml"))
DOCKERFILES = sorted(OUTPUT.glob("*.Dockerfile"))
# Lists are written as PyYAML does, and an expression of PromQL is one line.
YAMLLINT = (
    "{extends: default, rules: {line-length: disable, document-start: disable, indentation: {indent-sequences: false}}}"
)


def tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name(name)), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def load(name: str) -> dict[str, Any]:
    document = yaml.safe_load((OUTPUT / name).read_text())
    assert isinstance(document, dict)
    return document


def instructions(dockerfile: str) -> list[list[str]]:
    """The words of each instruction, comments left out and lines joined."""
    text = "\n".join(line for line in dockerfile.splitlines() if not line.startswith("#"))
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def command_line(dockerfile: str) -> list[str]:
    """The flags that an image gives to tritonserver."""
    match = re.search(r"^CMD (\[.*\])$", dockerfile.replace("\\\n", " "), re.MULTILINE)
    assert match
    flags = json.loads(match[1])
    assert flags
    return [str(flag) for flag in flags]


def health_check(dockerfile: str) -> list[str]:
    match = re.search(r"HEALTHCHECK .*?CMD (\[.*?\])$", dockerfile.replace("\\\n", " "), re.MULTILINE)
    assert match
    words = [str(word) for word in json.loads(match[1])]
    assert words[0] == "python3"
    return [sys.executable, *words[1:]]


def test_the_folder_is_what_is_rendered(tmp_path: Path) -> None:
    """On failure: `python -m tests.containers.example` renders it again."""
    rendered = example(tmp_path)
    assert {name: (OUTPUT / name).read_text() for name in rendered.files} == rendered.files
    beside = {path.relative_to(OUTPUT).as_posix() for path in OUTPUT.rglob("*") if path.is_file()}
    assert beside - rendered.files.keys() == {"README.md"}
    assert rendered.notes == ()


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    result = tool("hadolint", "--failure-threshold", "style", path)
    assert result.returncode == 0, result.stdout


def test_hadolint_refuses_an_image_without_a_tag(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text((OUTPUT / "server.Dockerfile").read_text().replace(":26.08-py3", ""))
    result = tool("hadolint", "--failure-threshold", "style", path)
    assert result.returncode != 0
    assert "DL3006" in result.stdout


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_yamllint_finds_nothing(path: Path) -> None:
    result = tool("yamllint", "--strict", "-d", YAMLLINT, path)
    assert result.returncode == 0, result.stdout


def test_yamllint_refuses_a_key_that_is_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text((OUTPUT / "compose.yaml").read_text() + "volumes: {}\n")
    result = tool("yamllint", "--strict", "-d", YAMLLINT, path)
    assert result.returncode != 0
    assert "duplication of key" in result.stdout


def test_the_compose_file_fits_its_schema() -> None:
    result = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", OUTPUT / "compose.yaml")
    assert result.returncode == 0, result.stdout


def test_the_schema_refuses_a_misspelt_field(tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text((OUTPUT / "compose.yaml").read_text().replace("read_only:", "readonly:"))
    result = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)
    assert result.returncode == 1
    assert "readonly" in result.stdout


def test_prometheus_accepts_its_config_and_rules(tmp_path: Path) -> None:
    # The config names its rules by where they are mounted.
    text = (OUTPUT / "monitoring/prometheus.yaml").read_text()
    (tmp_path / "prometheus.yaml").write_text(text.replace("/etc/prometheus/", f"{OUTPUT}/monitoring/"))
    result = promtool("check", "config", tmp_path / "prometheus.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    # A pattern of rule files that matches none is a success too.
    assert "SUCCESS: 1 rule files found" in result.stdout
    assert re.search(r"SUCCESS: [1-9]\d* rules found", result.stdout)


def test_each_container_is_confined_and_each_image_is_pinned() -> None:
    for name, service in load("compose.yaml")["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        tag = service["image"].rpartition(":")[2]
        assert tag not in ("", "latest"), name


def test_no_file_holds_a_secret() -> None:
    environment = load("compose.yaml")["services"]["grafana"]["environment"]
    assert environment["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_ADMIN_PASSWORD:?")


def test_the_parts_agree() -> None:
    services = load("compose.yaml")["services"]
    flags = dict(
        flag.removeprefix("--").partition("=")[::2] for flag in command_line((OUTPUT / "server.Dockerfile").read_text())
    )
    triton = services["triton"]
    assert triton["ports"] == [f"127.0.0.1:{flags[port]}:{flags[port]}" for port in ("http-port", "grpc-port")]
    assert int(triton["stop_grace_period"].rstrip("s")) > int(flags["exit-timeout-secs"])
    (scraped,) = load("monitoring/prometheus.yaml")["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": [f"triton:{flags['metrics-port']}"]}]
    assert f'job="{scraped["job_name"]}"' in (OUTPUT / "monitoring/rules.yaml").read_text()
    (source,) = load("monitoring/datasource.yaml")["datasources"]
    assert source["uid"] == DATASOURCE["uid"]
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    assert [name for name in mounted if name.startswith("./") and not (OUTPUT / name).exists()] == []


def test_what_the_archive_needs_of_tmp_is_given() -> None:
    (tmp,) = load("compose.yaml")["services"]["triton"]["tmpfs"]
    assert "exec" in tmp.partition(":")[2].split(",")


def test_the_dashboard_is_laid_out_and_asks_one_source() -> None:
    shown = json.loads((OUTPUT / "monitoring/dashboards/triton.json").read_text())
    panels = shown["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 6
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    for panel in panels:
        assert panel["targets"]
        assert all(target["datasource"] == DATASOURCE and target["expr"] for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    titles = " ".join(panel["title"] for panel in panels)
    for wanted in ("budget burn", "answered", "Failures by reason", "Batch reached", "latency by stage", "waiting"):
        assert wanted in titles


def test_the_page_explains_each_alert_and_its_link_leads_there() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    anchors = {line[4:].strip().lower() for line in page.splitlines() if line.startswith("### ")}
    groups = load("monitoring/rules.yaml")["groups"]
    links = {rule["annotations"]["runbook_url"] for group in groups for rule in group["rules"] if "alert" in rule}
    assert {link.partition("#")[0] for link in links} == {"docs/monitoring.md"}
    assert {link.partition("#")[2] for link in links} <= anchors


def carry_out(dockerfile: str, contexts: dict[str, Path], root: Path) -> None:
    """Do what the COPY, WORKDIR and RUN sha256sum lines of a server image say, below `root`."""
    here = root
    for words in instructions(dockerfile):
        if words[0] == "COPY":
            copy(words[1:], contexts, root)
        elif words[0] == "WORKDIR":
            here = root / words[1].lstrip("/")
        elif words[:2] == ["RUN", "sha256sum"]:
            arguments = [word.replace("/opt", f"{root}/opt") for word in words[2:]]
            subprocess.run(["sha256sum", *arguments], cwd=here, check=True, capture_output=True)


def copy(words: Sequence[str], contexts: dict[str, Path], root: Path) -> None:
    source = next((word.partition("=")[2] for word in words if word.startswith("--from=")), ".")
    *files, target = [word for word in words if not word.startswith("--")]
    for name in files:
        path, place = contexts[source] / name, root / target.lstrip("/")
        if path.is_dir():
            shutil.copytree(path, place, dirs_exist_ok=True)
        else:
            place = place / path.name if target.endswith("/") else place
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


@pytest.fixture
def built(tmp_path: Path) -> tuple[Path, str]:
    """An image's root for a version that computes, and its Dockerfile; for the release that runs here."""
    version = publish(tmp_path / "models", Linear().onnx(), Sample())
    objective = Objective(model="pets", bound_ms=15.0, quantile=0.99)
    request = DockerRequest(
        versions=(version,), output=tmp_path / "rendered", target="24.10-cpu", objectives=(objective,)
    )
    write(render(request), request.output)
    dockerfile = (request.output / "server.Dockerfile").read_text()
    carry_out(dockerfile, {".": request.output, "repository": tmp_path / "models"}, tmp_path / "root")
    return tmp_path / "root", dockerfile


def test_an_image_holds_what_is_served_and_nothing_else(built: tuple[Path, str]) -> None:
    models = built[0] / "models"
    files = {path.relative_to(models).as_posix() for path in models.rglob("*") if path.is_file()}
    warmup = {name for name in files if name.startswith("pets/warmup/")}
    assert files - warmup == {"pets/config.pbtxt", "pets/1/model.onnx", "pets/1/labels.txt"}
    assert len(warmup) == 1


def test_a_build_ends_if_a_file_changed_since(built: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "models/pets/1/model.onnx").write_bytes(b"another graph")
    with pytest.raises(subprocess.CalledProcessError):
        carry_out(built[1], {".": tmp_path / "rendered", "repository": tmp_path / "models"}, tmp_path / "second")


@pytest.mark.engine
def test_a_real_server_serves_what_the_image_holds(built: tuple[Path, str], engine: Engine, tmp_path: Path) -> None:
    root, dockerfile = built
    flags = command_line(dockerfile)
    assert {flag.split("=")[0] for flag in flags} - known_flags(engine, tmp_path) == set()
    config = root / "models/pets/config.pbtxt"
    # The local engine's python-based backends need their words; the files are the image's.
    version = Version(repository=root / "models", name="pets", number=1)
    config.write_text(format_config(local.adapt(version, parse_config(config.read_text()))))
    ports = choose_ports("127.0.0.1", WantedPorts())
    elsewhere = {
        "/models": f"{root}/models",
        "0.0.0.0": "127.0.0.1",
        "8000": str(ports.http),
        "8001": str(ports.grpc),
        "8002": str(ports.metrics),
    }
    moved = [
        f"{name}={elsewhere.get(value, value)}" if value else name
        for name, _, value in (f.partition("=") for f in flags)
    ]
    check = [word.replace(":8000/", f":{ports.http}/") for word in health_check(dockerfile)]
    assert subprocess.run(check, check=False, capture_output=True).returncode != 0
    with started(engine, moved, tmp_path, ports=ports):
        assert subprocess.run(check, check=False).returncode == 0


def test_the_readme_renders_what_is_here() -> None:
    assert NAME in (OUTPUT / "README.md").read_text()
