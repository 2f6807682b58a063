"""Code of before that holds a weight of before: the proof sees it, and the checkpoint's own code is published."""

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from deploy.cache import Store, artifact_store
from deploy.convert.aoti_weights import RECIPE_FILE, Recipe
from deploy.convert.model import Format
from deploy.convert.onnx_weights import GRAPH_FILE
from deploy.errors import ExitCode
from deploy.files import sha256_file
from deploy.request import PackageRequest
from tests.packaging import make_request, run


@pytest.mark.parametrize("format_", ["onnx", pytest.param("aoti", marks=pytest.mark.slow)])
def test_stale_code_fails_its_proof_and_is_compiled_again(
    format_: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "cache"))
    first = run(_request(tmp_path / "first", format_, seed=0))
    make_stale(artifact_store(), format_)

    second = run(_request(tmp_path / "second", format_, seed=1))

    assert first.conversion.artifacts[format_].reused is None
    assert artifact_store().entries() == ()
    assert second.conversion.artifacts[format_].reused is None
    assert second.exit_code is ExitCode.OK


def test_sound_code_of_before_passes_and_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "cache"))
    run(_request(tmp_path / "first", "onnx", seed=0))

    second = run(_request(tmp_path / "second", "onnx", seed=1))
    request = _request(tmp_path / "third", "onnx", seed=1)
    alone = run(request, resources=replace(request.resources, cache=False))

    assert second.conversion.artifacts["onnx"].reused == artifact_store().entries()[0].key
    assert alone.conversion.artifacts["onnx"].reused is None
    assert second.exit_code is alone.exit_code is ExitCode.OK


def _request(folder: Path, format_: Format, *, seed: int) -> PackageRequest:
    return replace(make_request(folder, seed=seed), formats=(format_,), serve_check=False)


def make_stale(store: Store, format_: Format) -> None:
    """Let the one entry give a wrong weight, its digests in order: what a leak in our own code would come to."""
    (entry,) = store.entries()
    if format_ == "onnx":
        path = entry.folder / GRAPH_FILE
        model = onnx.load(path)
        (stale,) = (value for value in model.graph.input if value.name == "head.bias")
        model.graph.input.remove(stale)
        model.graph.initializer.append(onnx.helper.make_tensor("head.bias", onnx.TensorProto.FLOAT, [5], [0.5] * 5))
        onnx.save(model, path)
    else:
        path = entry.folder / RECIPE_FILE
        recipe = Recipe.read(path)
        names = {"features.1.weight": "features.1.running_var", "features.1.running_var": "features.1.weight"}
        swapped = [one.model_copy(update={"weight": names.get(one.weight, one.weight)}) for one in recipe.constants]
        recipe.model_copy(update={"constants": tuple(swapped)}).write(path)
    facts = json.loads((entry.folder / "entry.json").read_text())
    facts["files"][path.name] = sha256_file(path)
    (entry.folder / "entry.json").write_text(json.dumps(facts))
