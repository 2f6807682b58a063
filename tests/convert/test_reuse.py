"""Code compiled for one fine-tune takes the weights of the next: all of them, and never those of before."""

import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.cache import Store
from deploy.checkpoint.load import read_checkpoint
from deploy.checkpoint.model import CheckpointRequest
from deploy.convert import onnx_weights, reuse
from deploy.convert.aoti import compile_aoti
from deploy.convert.aoti_weights import take_apart
from deploy.convert.export import load_program
from deploy.convert.model import FORMATS, Format
from deploy.convert.reuse import Weights, weights_of, work_key
from deploy.convert.run import Conversion, convert
from deploy.convert.tactics import Tactic
from deploy.processes import Worker, run_alone
from deploy.progress import Silent
from deploy.validate.executables import AotiModel, OnnxModel
from tests.convert.awkward import awkward
from tests.convert.helpers import plan, target
from tests.models import IMAGE

ROWS = 3


def converted(folder: Path, seed: int, store: Store | None) -> Conversion:
    folder.mkdir()
    path = folder / "awkward.pt"
    torch.save(awkward(seed).state_dict(), path)
    request = CheckpointRequest(path=path, factory="tests.convert.awkward:Awkward", input_shapes=(IMAGE,))
    checkpoint = run_alone("read", read_checkpoint, request).value
    done = convert(checkpoint, replace(plan(folder), store=store), Silent())
    assert not done.failures, done.failures
    return done


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Conversion]:
    """Two fine-tunes one after the other, with a cache that was empty."""
    folder = tmp_path_factory.mktemp("reuse")
    store = Store(folder=folder / "store")
    return {"first": converted(folder / "first", 0, store), "second": converted(folder / "second", 1, store)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    """The second fine-tune without a cache."""
    return converted(tmp_path_factory.mktemp("alone") / "alone", 1, None)


def store_of(tuned: dict[str, Conversion]) -> Store:
    return Store(folder=tuned["first"].program.path.parents[2] / "store")


@pytest.mark.parametrize("format_", FORMATS)
def test_the_second_fine_tune_takes_the_code_of_the_first(tuned: dict[str, Conversion], format_: Format) -> None:
    first, second = (tuned[name].artifacts[format_] for name in ("first", "second"))

    assert first.reused is None
    assert second.reused is not None
    assert second.details == first.details


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(("name", "seed"), [("first", 0), ("second", 1)])
def test_every_weight_is_the_checkpoints_own(
    tuned: dict[str, Conversion], format_: Format, name: str, seed: int
) -> None:
    image = np.random.default_rng(0).standard_normal((ROWS, *IMAGE)).astype(np.float32)

    with Worker("model", log=Path(os.devnull)) as worker:
        kind = {"aoti": AotiModel, "onnx": OnnxModel}[format_]
        worker.make(kind, tuned[name].artifacts[format_].path, threads=1)
        (found,) = worker.call("run", [image])

    with torch.no_grad():
        wanted = awkward(seed)(torch.from_numpy(image)).numpy()
        other = awkward(1 - seed)(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, other, rtol=1e-2)


@pytest.mark.slow
def test_code_that_froze_the_weights_is_neither_kept_nor_taken(tuned: dict[str, Conversion], tmp_path: Path) -> None:
    """Frozen twice with one store: each archive answers with its own checkpoint's weights."""
    store = Store(folder=tmp_path / "store")
    frozen = Tactic(format="aoti", name="frozen", options={"freezing": "1"})
    image = np.random.default_rng(0).standard_normal((ROWS, *IMAGE)).astype(np.float32)
    for seed, name in enumerate(("first", "second")):
        folder = tmp_path / name
        folder.mkdir()
        made = run_alone(
            "freeze", compile_aoti, tuned[name].program, target=target(), folder=folder, store=store, tactic=frozen
        ).value

        assert made.details["tactic"] == "frozen"
        assert made.reused is None
        assert store.entries() == ()
        with Worker("model", log=Path(os.devnull)) as worker:
            worker.make(AotiModel, made.path, threads=1)
            (found,) = worker.call("run", [image])
        with torch.no_grad():
            np.testing.assert_allclose(found, awkward(seed)(torch.from_numpy(image)).numpy(), rtol=1e-4, atol=1e-5)


# Slow, since it compiles once more: that every weight is the checkpoint's own is seen without that.
@pytest.mark.slow
def test_artifacts_of_old_code_are_those_that_compiling_again_gives(
    tuned: dict[str, Conversion], alone: Conversion
) -> None:
    for format_ in FORMATS:
        made, again = tuned["second"].artifacts[format_], alone.artifacts[format_]
        assert again.reused is None
        assert made.details == again.details
    made, again = tuned["second"].artifacts["aoti"], alone.artifacts["aoti"]
    assert made.path.read_bytes() == again.path.read_bytes()


def test_no_weight_is_kept(tuned: dict[str, Conversion]) -> None:
    """The folder of the cache, whatever is in it, holds none of the first fine-tune's tensors of more than 8 bytes."""
    folder = store_of(tuned).folder
    held = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())

    assert len(list(folder.iterdir())) == 2
    assert torch.arange(8.0).numpy().tobytes() in held
    for name, tensor in awkward(0).state_dict().items():
        if tensor.is_floating_point() and len(tensor.unique()) > 1:
            assert tensor.numpy().tobytes() not in held, name


def test_another_graph_batch_or_converter_is_other_work(
    tuned: dict[str, Conversion], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tuned["first"].program
    exported = load_program(program)
    weights = weights_of(exported)
    keys = {
        work_key(one, weights, format=format_, settings=settings, target=target().with_isa(isa))
        for one in (program, replace(program, digest="other"))
        for format_ in FORMATS
        for settings in ({}, {"opset": "18"})
        for isa in ("avx2", "native")
    }
    moved = Weights(learnt={**weights.learnt, "gamma": torch.ones(16)[::2]}, fixed=weights.fixed, used=weights.used)
    fixed = Weights(learnt=weights.learnt, fixed={"grid": torch.zeros(8)}, used=weights.used)
    for one in (moved, fixed):
        keys.add(work_key(program, one, format="onnx", settings={}, target=target()))
    # What an earlier release of ours compiled is not taken: its code may lack what was mended since.
    monkeypatch.setattr(reuse, "_own_sources", lambda: iter(["threads.py of before"]))
    keys.add(work_key(program, weights, format="aoti", settings={}, target=target().with_isa("avx2")))

    assert len(keys) == 19


@pytest.mark.parametrize("leak", ["a weight in the code", "a constant of unknown origin", "a value that differs"])
def test_code_that_holds_a_weight_is_not_kept(tuned: dict[str, Conversion], leak: str, tmp_path: Path) -> None:
    conversion = tuned["second"]
    weights = weights_of(load_program(conversion.program))
    learnt = dict(weights.learnt)
    match leak:
        case "a weight in the code":
            learnt["burnt"] = torch.ones(3)
            weights = replace(weights, learnt=learnt, used=weights.used | {"burnt"})
        case "a constant of unknown origin":
            del learnt["head.bias"]
            weights = replace(weights, learnt=learnt, used=weights.used - {"head.bias"})
        case "a value that differs":
            learnt["gamma"] = learnt["gamma"] + 1
            weights = replace(weights, learnt=learnt)

    assert take_apart(conversion.artifacts["aoti"].path, weights, {}, into=tmp_path / "entry") is None
    assert not (tmp_path / "entry").exists()


@pytest.mark.parametrize("leak", ["a weight in the graph", "a value that differs", "another shape"])
def test_a_graph_that_holds_a_weight_is_not_kept(tuned: dict[str, Conversion], leak: str, tmp_path: Path) -> None:
    import onnx_ir

    weights = weights_of(load_program(tuned["second"].program))
    model = onnx_ir.load(tuned["second"].artifacts["onnx"].path)
    assert onnx_weights.take_apart(model, weights, {}, into=tmp_path / "whole")
    learnt = dict(weights.learnt)
    match leak:
        case "a weight in the graph":
            del model.graph.initializers["gamma"]
        case "a value that differs":
            learnt["gamma"] = learnt["gamma"] + 1
        case "another shape":
            learnt["gamma"] = learnt["gamma"][:4]

    assert not onnx_weights.take_apart(model, replace(weights, learnt=learnt), {}, into=tmp_path / "entry")


def test_a_damaged_entry_is_compiled_again(tuned: dict[str, Conversion], tmp_path: Path) -> None:
    store = Store(folder=tmp_path / "store")
    shutil.copytree(store_of(tuned).folder, store.folder)
    (graph,) = (entry for entry in store.entries() if entry.about.startswith("ONNX"))
    damaged = graph.folder / "graph.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")

    again = converted(tmp_path / "again", 1, store)

    assert again.artifacts["aoti"].reused is not None
    assert again.artifacts["onnx"].reused is None
    assert again.artifacts["onnx"].path.read_bytes() == tuned["second"].artifacts["onnx"].path.read_bytes()


def test_the_code_in_an_archive_is_not_compressed(tuned: dict[str, Conversion]) -> None:
    """The loader maps the weights, and Triton's reads nothing else than stored entries quickly."""
    with zipfile.ZipFile(tuned["second"].artifacts["aoti"].path) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
