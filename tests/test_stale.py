"""Code of before that holds a weight of before: the proof sees it, and the checkpoint's own code is published."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from deploy.cache import Store, artifact_store
from deploy.checkpoint.load import build_module, read_checkpoint
from deploy.checkpoint.model import CheckpointRequest
from deploy.convert import aoti_weights, onnx_weights
from deploy.convert.flatten import positional
from deploy.convert.hollow import save_hollow
from deploy.convert.model import Format
from deploy.convert.onnx_wire import Skeleton
from deploy.errors import ExitCode
from deploy.files import sha256_file
from deploy.request import PackageRequest
from tests.fixtures import save_state_dict, seeded_module
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


def test_samples_of_another_network_cost_no_entry_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager itself is refuted by them, so no artifact was asked and none is compiled again."""
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "cache"))
    first = _request(tmp_path / "first", "onnx", seed=0)
    run(first)
    kept = [entry.key for entry in artifact_store().entries()]
    row = np.random.default_rng(0).standard_normal((4, *first.checkpoint.input_shapes[0]), dtype=np.float32)
    np.savez(
        tmp_path / "others.npz", allow_pickle=False, **{"input": row, "expected/output": np.ones((4, 5), np.float32)}
    )

    refuted = run(_request(tmp_path / "second", "onnx", seed=1), samples=tmp_path / "others.npz")

    assert refuted.exit_code is ExitCode.NO
    assert refuted.behaviour.status == "refuted"
    assert refuted.conversion.artifacts["onnx"].reused in kept
    assert sorted(entry.key for entry in artifact_store().entries()) == sorted(kept)


@pytest.mark.slow
def test_a_stale_program_fails_its_proof_and_is_exported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "cache"))
    run(_library_request(tmp_path / "first", seed=0))
    make_program_stale(artifact_store(), tmp_path / "first" / "squeezenet.pt")

    second = run(_library_request(tmp_path / "second", seed=1))

    assert second.conversion.program.reused is None and second.conversion.artifacts["onnx"].reused is None
    assert artifact_store().entries() == ()
    assert second.exit_code is ExitCode.OK


@pytest.mark.slow
def test_a_sound_program_of_before_passes_and_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "cache"))
    run(_library_request(tmp_path / "first", seed=0))

    second = run(_library_request(tmp_path / "second", seed=1))

    assert second.conversion.program.reused and second.conversion.artifacts["onnx"].reused
    assert second.exit_code is ExitCode.OK


def _library_request(folder: Path, *, seed: int) -> PackageRequest:
    """A fine-tune of a library's architecture, whose export can be kept; no real samples."""
    request = make_request(folder)
    path = save_state_dict(seeded_module("squeezenet1_1", size=64, seed=seed), folder / "squeezenet.pt")
    checkpoint = CheckpointRequest(path=path, arch="squeezenet1_1", input_shapes=((3, 64, 64),))
    return replace(request, checkpoint=checkpoint, samples=None, labels=None, serve_check=False)


def make_program_stale(store: Store, path: Path) -> None:
    """Let the kept program compute something else, and nothing be kept that was compiled from the right one."""
    for entry in store.entries():
        if not entry.about.startswith("program"):
            store.drop(entry.key)
    (entry,) = store.entries()
    checkpoint = read_checkpoint(CheckpointRequest(path=path, arch="squeezenet1_1", input_shapes=((3, 64, 64),)))
    module: Any = build_module(checkpoint)
    module.features[1] = torch.nn.Hardtanh(-0.1, 0.1)
    batch = torch.export.Dim("batch", min=1, max=4)
    exported = torch.export.export(
        positional(module), (torch.randn(2, 3, 64, 64),), dynamic_shapes=(({0: batch},),), strict=False
    )
    save_hollow(exported, entry.folder / "program.pt2")
    facts = json.loads((entry.folder / "entry.json").read_text())
    facts["files"]["program.pt2"] = sha256_file(entry.folder / "program.pt2")
    (entry.folder / "entry.json").write_text(json.dumps(facts))


def _request(folder: Path, format_: Format, *, seed: int) -> PackageRequest:
    return replace(make_request(folder, seed=seed), formats=(format_,), serve_check=False)


def make_stale(store: Store, format_: Format) -> None:
    """Let the one entry give a wrong weight, its digests in order: what a leak in our own code would come to."""
    (entry,) = store.entries()
    if format_ == "onnx":
        path, recipe_path = (entry.folder / name for name in (onnx_weights.GRAPH_FILE, onnx_weights.RECIPE_FILE))
        recipe = onnx_weights.Recipe.read(recipe_path)
        model = onnx.load(path)
        model.graph.initializer.append(onnx.helper.make_tensor("head.bias", onnx.TensorProto.FLOAT, [5], [0.5] * 5))
        graph = model.graph.SerializeToString()
        model.ClearField("graph")
        path.write_bytes(Skeleton(model=model.SerializeToString(), graph=graph).whole())
        learnt = tuple(one for one in recipe.weights if one.name != "head.bias")
        assert len(learnt) == len(recipe.weights) - 1
        recipe.model_copy(update={"graph": len(graph), "weights": learnt}).write(recipe_path)
    else:
        path = entry.folder / aoti_weights.RECIPE_FILE
        order = aoti_weights.Recipe.read(path)
        names = {"features.1.weight": "features.1.running_var", "features.1.running_var": "features.1.weight"}
        swapped = [one.model_copy(update={"weight": names.get(one.weight, one.weight)}) for one in order.constants]
        order.model_copy(update={"constants": tuple(swapped)}).write(path)
    facts = json.loads((entry.folder / "entry.json").read_text())
    facts["files"] = {name: sha256_file(entry.folder / name) for name in facts["files"]}
    (entry.folder / "entry.json").write_text(json.dumps(facts))
