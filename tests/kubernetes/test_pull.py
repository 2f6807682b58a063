"""The container that pulls runs a command line that works: what it brings is what the next container lets through."""

import subprocess
from pathlib import Path

import yaml
from click.testing import CliRunner

from deploy.cli.main import cli
from deploy.kubernetes.digests import CHECK_FILE, lists
from deploy.kubernetes.render import Rendered, render
from deploy.kubernetes.request import KubernetesRequest, Source
from deploy.repository.layout import Version
from tests.repository.samples import Sample, put

STORE = "s3://models/production"


def rendered_for(version: Version) -> Rendered:
    sources = (Source.parse(STORE),)
    return render(KubernetesRequest(version=version, sources=sources, tool_image="deployctl:1", target="26.08-cpu"))


def pull_arguments(rendered: Rendered) -> list[str]:
    component = yaml.safe_load(rendered.files["components/models-from-store/kustomization.yaml"])
    added = [operation["value"] for operation in yaml.safe_load(component["patches"][0]["patch"])]
    (arguments,) = [value["args"] for value in added if value.get("name") == "pull-models"]
    return [str(word) for word in arguments]


def test_what_is_pulled_may_be_served(tmp_path: Path) -> None:
    """From a folder in place of the bucket; a folder inside a volume receives it, as in the pod."""
    put(tmp_path / "store")
    version = put(tmp_path / "store", Sample(weights=b"the second")).version
    rendered = rendered_for(version)
    elsewhere = {STORE: str(tmp_path / "store"), "/pulled/models": str(tmp_path / "volume" / "models")}
    arguments = [elsewhere.get(word, word) for word in pull_arguments(rendered)]
    (tmp_path / "volume").mkdir()
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "lists"
    folder.mkdir()
    for name, text in lists(rendered.plan.model).items():
        (folder / name).write_text(text)
    command = ["/bin/sh", str(folder / CHECK_FILE), str(tmp_path / "volume" / "models"), str(folder), "pets", "2"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_another_version_under_the_same_number_is_not_received(tmp_path: Path) -> None:
    version = put(tmp_path / "models").version
    put(tmp_path / "store", Sample(weights=b"other weights"))
    elsewhere = {STORE: str(tmp_path / "store"), "/pulled/models": str(tmp_path / "volume" / "models")}
    arguments = [elsewhere.get(word, word) for word in pull_arguments(rendered_for(version))]
    (tmp_path / "volume").mkdir()
    result = CliRunner().invoke(cli, arguments)
    assert result.exception is not None
    assert not (tmp_path / "volume" / "models" / "pets" / "1").exists()
