"""A faster artifact from a checkpoint file to served answers: what was chosen is what the config and manifest say."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.cache import artifact_store, cache_folder
from deploy.convert.model import FORMATS, Format
from deploy.convert.ort_session import LEVEL, options_in
from deploy.convert.tactics import DEFAULT, alternatives
from deploy.errors import ExitCode
from deploy.repository.find import read_manifest
from deploy.repository.protobuf import parse_config
from deploy.request import PackageRequest, PackageResult
from deploy.serve.engines import Engine
from deploy.validate.choices import Choice, keep
from deploy.validate.fastest import FastestPlan, choice_key
from tests.packaging import make_request, run

CHOSEN: dict[Format, str] = {"aoti": "unpacked", "onnx": "no arena"}


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


@pytest.mark.slow
@pytest.mark.engine
def test_what_was_chosen_before_is_proven_published_and_served_in_both_formats(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines, cache = cache_folder("engines"), tmp_path / "cache"
    cache.mkdir()
    (cache / "engines").symlink_to(engines)
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(cache))
    first = run(_in_both_formats(tmp_path / "first", seed=0), serve_check=False)
    for format_ in FORMATS:
        _choose(first, format_, tmp_path)

    second = run(_in_both_formats(tmp_path / "second", seed=1), effort="normal")

    assert second.exit_code is ExitCode.OK
    manifests = {one.format: one for one in (read_manifest(made.version) for made in second.outcome.published)}
    assert {format_: manifest.artifact["tactic"] for format_, manifest in manifests.items()} == CHOSEN
    assert all(manifest.verdicts.parity.passed for manifest in manifests.values())
    assert all(manifest.verdicts.served and manifest.verdicts.served.passed for manifest in manifests.values())


def _in_both_formats(folder: Path, *, seed: int) -> PackageRequest:
    return replace(make_request(folder, seed=seed), formats=FORMATS, all_formats=True)


def _choose(made: PackageResult, format_: Format, folder: Path) -> None:
    """Keep the choice of a tactic, as the measurement of a quiet machine would."""
    tactic = next(one for one in alternatives(format_, "normal") if one.name == CHOSEN[format_])
    plan = FastestPlan(
        effort="normal", target=_in_both_formats(folder, seed=0).target, threads=1, folder=folder, logs=folder,
        store=artifact_store(),
    )  # fmt: skip
    key = choice_key(made.checkpoint, made.conversion, made.conversion.artifacts[format_], plan)
    keep(Choice(tactic=tactic, measured="by a test"), artifact_store(), key, work=folder)
