"""The example pipelines are valid and agree with the script they call; the script releases and refuses for real."""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from deploy.repository.layout import promoted_version
from deploy.serve.engines import Engine
from tests.kubernetes.schema import NEWEST, Misfit, check
from tests.markdown import ROOT
from tests.packaging import make_request
from tests.release.pki import write_key

FOLDER = ROOT / "examples" / "pipelines"
SCRIPT = (FOLDER / "release.sh").read_text()
PIPELINES = ("github-actions.yml", "gitlab-ci.yml", "Jenkinsfile", "argo-workflow.yaml")

CONFIG = """
[package]
name = "tiny"
factory = "tests.models:ConvNet"
input_shape = [3, 16, 16]
samples = "samples.npz"
labels = "labels.txt"
formats = ["onnx"]
max_batch = 4
seconds_per_cell = 0.05

[slo]
rate = 300
p99_ms = 1500
duration = 3
min_duration = 0
warm_up = 0.2
timeout_ms = 2000

[diff]
max_flipped_rows = 0
seconds_per_cell = 0.05

[publish]
to = "production"

[sign]
builder_id = "https://ci.example.com/workflows/release"

[promote]
require = ["slo", "diff", "signature"]
architecture = "confirmed"
public_key = "release.pub"
"""


@pytest.mark.parametrize(
    ("schema", "name", "right", "wrong"),
    [
        ("vendor.github-workflows", "github-actions.yml", "timeout-minutes:", "timeout-minuts:"),
        ("vendor.gitlab-ci", "gitlab-ci.yml", "exit_codes:", "exit_kodes:"),
    ],
    ids=["github", "gitlab"],
)
def test_the_schema_of_the_system_accepts_its_file(
    tmp_path: Path, schema: str, name: str, right: str, wrong: str
) -> None:
    (tmp_path / "broken.yml").write_text((FOLDER / name).read_text().replace(right, wrong))
    for path, code in ((FOLDER / name, 0), (tmp_path / "broken.yml", 1)):
        command = [str(Path(sys.executable).with_name("check-jsonschema")), "--builtin-schema", schema, str(path)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == code, result.stdout


def code_of(name: str) -> str:
    """The file without its comments."""
    return re.sub(r"(^|\s)(#|//) .*$", "", (FOLDER / name).read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_calls_the_script_once_and_repeats_none_of_its_steps(name: str) -> None:
    text = code_of(name)
    assert text.count("release.sh") == 1
    assert set(re.findall(r"deployctl ([a-z]+)", text)) <= {"engine"}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_keeps_what_the_script_writes_however_it_ends(name: str) -> None:
    written = set(re.findall(r"\$out/([a-z]+\.[a-z]+)", SCRIPT))
    named = set(re.findall(r"release/([a-z*]+\.[a-z]+)", code_of(name)))
    assert [pattern for pattern in named if not fnmatch.filter(written, pattern)] == []
    whole = {
        "github-actions.yml": "if: always()",
        "gitlab-ci.yml": "when: always",
        "Jenkinsfile": "always {",
        "argo-workflow.yaml": "optional: true",
    }
    assert whole[name] in code_of(name)


def test_the_script_explains_each_variable_that_it_reads() -> None:
    head = SCRIPT.split("\nset -", maxsplit=1)[0]
    read = set(re.findall(r"\$\{?([A-Z_]+)", SCRIPT)) - {"SECONDS"}
    assert read == set(re.findall(r"^#   ([A-Z_]+)  ", head, re.MULTILINE))


def test_the_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(FOLDER / "release.sh")], check=True)
    assert os.access(FOLDER / "release.sh", os.X_OK)


def argo_template() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load((FOLDER / "argo-workflow.yaml").read_text())
    assert (spec["apiVersion"], spec["kind"]) == ("argoproj.io/v1alpha1", "WorkflowTemplate")
    (template,) = spec["spec"]["templates"]
    assert template["name"] == spec["spec"]["entrypoint"]
    assert [one["name"] for one in spec["spec"]["arguments"]["artifacts"]] == ["checkpoint"]
    found: dict[str, Any] = template
    return found


def test_the_argo_template_fits_the_schema_of_its_kind() -> None:
    text = (FOLDER / "argo-workflow.yaml").read_text()
    check(yaml.safe_load(text), NEWEST)
    for right, wrong in (("retryStrategy:", "retryStrategi:"), ("image:", "imag:"), ('limit: "1"', "limit: [1]")):
        assert right in text
        with pytest.raises(Misfit):
            check(yaml.safe_load(text.replace(right, wrong)), NEWEST)


def test_the_argo_template_gives_the_script_its_checkpoint_and_keeps_its_reports() -> None:
    template = argo_template()
    (given,) = template["inputs"]["artifacts"]
    assert template["container"]["args"] == [given["path"]]
    variables = {one["name"]: one["value"] for one in template["container"]["env"]}
    assert variables.keys() <= set(re.findall(r"\$\{([A-Z_]+)", SCRIPT))
    mounts = {one["mountPath"]: one["name"] for one in template["container"]["volumeMounts"]}
    assert set(mounts.values()) == {one["name"] for one in template["volumes"]}
    for one in template["outputs"]["artifacts"]:
        assert Path(one["path"]).parent == Path(variables["OUT"])
        assert f"$out/{Path(one['path']).name}" in SCRIPT
    assert "exitCode) == 4" in template["retryStrategy"]["expression"]


def blocks(text: str) -> list[str]:
    """The names of the blocks of a Jenkinsfile in order. Raises ValueError where braces or quotes do not match."""
    names, depth, quote = [], 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        previous = ""
        for at, character in enumerate(line):
            if quote:
                quote = "" if character == quote and previous != "\\" else quote
            elif line.startswith("//", at):
                break
            elif character in "'\"":
                quote = character
            elif character in "{}":
                depth += 1 if character == "{" else -1
                if character == "{":
                    names.append(line[:at].strip().removeprefix("} "))
            previous = character
        if quote or depth < 0:
            raise ValueError(f"line {number}: {line}")
    if depth:
        raise ValueError(f"{depth} blocks are not closed")
    return names


def test_the_jenkinsfile_has_the_structure_of_a_declarative_pipeline() -> None:
    text = (FOLDER / "Jenkinsfile").read_text()
    found = blocks(text)
    assert found[0] == "pipeline"
    assert {"agent", "options", "stages", "post", "always"} <= set(found)
    assert [name for name in found if name.startswith("stage(")][-1] == "stage('release')"
    for broken in (text.replace("}\n", "\n", 1), text.replace("'release/**'", "'release/**")):
        with pytest.raises(ValueError, match=r"line|closed"):
            blocks(broken)


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """How a run of the script ended, and where it wrote."""

    code: int
    folder: Path
    talk: str

    def read(self, name: str) -> str:
        return (self.folder / "release" / name).read_text()

    @property
    def steps(self) -> dict[str, str]:
        """The steps of the JUnit file in order, each with what went wrong."""
        cases = ElementTree.fromstring(self.read("steps.xml")).iter("testcase")
        return {case.get("name", ""): "".join(child.tag for child in case) for case in cases}

    @property
    def in_production(self) -> tuple[list[str], int | None]:
        """The versions that production has, and the one that it serves."""
        folder = self.folder / "production" / "tiny"
        return sorted(path.name for path in folder.iterdir() if path.name.isdigit()), promoted_version(folder)


def release(folder: Path, *, first: bool) -> Release:
    """Run the script as a pipeline does, on the tiny net, in a fresh workspace."""
    (folder / "deploy.toml").write_text(CONFIG)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CONFIG": str(folder / "deploy.toml"),
        "MODELS": str(folder / "models"),
        "OUT": str(folder / "release"),
        "SIGNING_KEY": str(folder / "release.key"),
        "FIRST": "1" if first else "",
    }
    for name in ("release", "models"):
        shutil.rmtree(folder / name, ignore_errors=True)
    checkpoint = next(folder.glob("*.pt"))
    command = ["bash", str(FOLDER / "release.sh"), str(checkpoint)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return Release(code=result.returncode, folder=folder, talk=result.stderr)


@pytest.mark.engine
@pytest.mark.alone
def test_a_checkpoint_reaches_production_and_one_that_decides_otherwise_does_not(
    engine: Engine, tmp_path: Path
) -> None:
    make_request(tmp_path)
    write_key(tmp_path, "release")
    first = release(tmp_path, first=True)
    assert first.code == 0, first.talk
    assert first.steps == dict.fromkeys(("package", "serve", "slo", "sign", "promote", "publish"), "")
    suite = ElementTree.fromstring(first.read("slo.xml"))[0]
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0")
    assert "PASS: tiny:1" in first.read("summary.md")
    assert "<html" in first.read("report.html")
    demands = {one["name"]: one["verdict"] for one in json.loads(first.read("promote.json"))["demands"]}
    assert {"architecture", "slo", "diff", "signature"} <= demands.keys()
    assert set(demands.values()) == {"pass"}
    assert first.in_production == (["1"], 1)

    make_request(tmp_path, seed=1)
    other = release(tmp_path, first=False)
    assert other.code == 1, other.talk
    assert other.steps == {**dict.fromkeys(("pull", "base", "package", "serve", "slo"), ""), "diff": "failure"}
    assert "the release stopped at diff with exit code 1" in other.talk
    assert "| diff | 1 |" in other.read("summary.md")
    assert other.in_production == (["1"], 1)


def test_what_cannot_be_read_ends_the_release_with_2(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_text("no checkpoint")
    (tmp_path / "samples.npz").touch()
    (tmp_path / "labels.txt").touch()
    found = release(tmp_path, first=True)
    assert found.code == 2, found.talk
    assert "the release stopped at package with exit code 2" in found.talk
    assert found.steps == {"package": "error"}
    assert not (tmp_path / "models").exists()
