"""Each command takes an ensemble, or says in one sentence what to name in its place."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.cli.main import cli
from deploy.errors import UsageError
from tests.repository.ensembles import WHOLE, put_ensemble


@pytest.mark.parametrize(
    "line",
    [
        ("bench", "{repository}", WHOLE),
        ("tune", "{repository}", WHOLE, "--p99-ms", "10", "--dry-run", "--engine", "local"),
        ("diff", "{repository}", WHOLE, "1", "2"),
    ],
    ids=lambda line: line[0],
)
def test_what_times_or_compares_a_network_names_it(tmp_path: Path, line: tuple[str, ...]) -> None:
    for _ in range(2):
        put_ensemble(tmp_path)
    result = CliRunner().invoke(cli, [word.format(repository=tmp_path) for word in line])
    error = result.exception
    assert isinstance(error, UsageError), result.output
    assert "pets_image:1 is an ensemble, which holds no model of its own" in error.found
    assert error.fix == "name the network itself: pets:1"


def test_manifests_are_refused_and_say_what_renders_an_ensemble(tmp_path: Path) -> None:
    put_ensemble(tmp_path / "models")
    given = ["k8s", str(tmp_path / "models"), WHOLE, "--output", str(tmp_path / "k8s"), "--target", "26.08-cpu"]
    result = CliRunner().invoke(cli, [*given, "--image", "registry.example.com/pets:1"])
    assert isinstance(result.exception, UsageError), result.output
    assert "pets_image:1 is an ensemble, and the manifests are for one model" in result.exception.found
    assert "deployctl docker" in result.exception.fix
    assert not (tmp_path / "k8s").exists()


def test_a_base_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    put_ensemble(tmp_path)
    result = CliRunner().invoke(cli, ["bench", str(tmp_path), "pets", "--base", str(tmp_path)])
    assert isinstance(result.exception, UsageError)
    assert result.exception.found == "--base was given without a checkpoint"
