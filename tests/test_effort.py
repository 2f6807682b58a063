"""A faster artifact from a checkpoint file to served answers: what was chosen is what the config and manifest say."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.cache import artifact_store
from deploy.convert.ort_session import LEVEL, options_in
from deploy.convert.tactics import DEFAULT, alternatives
from deploy.errors import ExitCode
from deploy.repository.find import read_manifest
from deploy.repository.protobuf import parse_config
from deploy.serve.engines import Engine
from tests.packaging import make_request, run


@pytest.mark.engine
def test_what_was_chosen_is_served_as_it_was_measured(tmp_path: Path, engine: Engine) -> None:
    request = make_request(tmp_path)

    result = run(request, effort="normal", resources=replace(request.resources, cache=False))

    assert result.exit_code is ExitCode.OK
    version = result.outcome.published[0].version
    manifest = read_manifest(version)
    known = {DEFAULT: {}, **{one.name: one.options for one in alternatives("onnx", "normal")}}
    options = known[manifest.artifact["tactic"]]
    assert options.items() <= manifest.artifact.items()
    assert manifest.artifact["tactic_measured"]
    assert manifest.verdicts.served is not None and manifest.verdicts.served.passed
    config = parse_config(version.config.read_text())
    written = {name: parameter.string_value for name, parameter in config.parameters.items()}
    written |= {LEVEL: str(config.optimization.graph.level)} if config.HasField("optimization") else {}
    assert options_in(manifest.artifact).items() <= written.items()


def test_a_low_effort_measures_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "cache"))

    result = run(make_request(tmp_path), serve_check=False)

    manifest = read_manifest(result.outcome.published[0].version)
    assert manifest.artifact["tactic"] == DEFAULT
    assert "tactic_measured" not in manifest.artifact
    assert [entry for entry in artifact_store().entries() if "fastest" in entry.about] == []
