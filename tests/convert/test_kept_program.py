"""The export of before serves the next checkpoint: its own weights, its own graph, and never where one cannot tell."""

import functools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from deploy.cache import Store
from deploy.checkpoint.load import build_module, read_checkpoint
from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from deploy.convert.export import export_program, load_program
from deploy.convert.fingerprint import program_key
from deploy.convert.flatten import positional
from deploy.convert.hollow import fill, holds_only
from deploy.convert.kept_program import weights_without_graph
from deploy.convert.model import Program
from deploy.convert.onnx import export_onnx
from deploy.convert.reuse import weights_of, work_key
from deploy.convert.run import convert
from deploy.errors import UnfinishedError
from deploy.processes import run_alone
from deploy.progress import Silent
from tests.convert.helpers import plan, target
from tests.fixtures import save_state_dict, seeded_module

ARCH = "squeezenet1_1"
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)


def read(folder: Path, seed: int, *, arch: str = ARCH) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    path = save_state_dict(seeded_module(arch, seed=seed), folder / f"{seed}.pt")
    return read_checkpoint(CheckpointRequest(path=path, arch=arch, input_shapes=((3, 64, 64),)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Program]]:
    """Two fine-tunes exported one after the other, each in a process of its own, with a cache that was empty."""
    folder = tmp_path_factory.mktemp("kept")
    store = Store(folder=folder / "store")
    programs = []
    for seed in (0, 1):
        into = folder / f"out-{seed}"
        into.mkdir()
        checkpoint = read(folder, seed)
        programs.append(run_alone("export", export_program, checkpoint, max_batch=4, folder=into, store=store).value)
    return store, programs


def test_the_second_takes_the_export_of_the_first(exported: tuple[Store, list[Program]]) -> None:
    store, (first, second) = exported
    assert first.reused is None
    assert second.reused == store.entries()[0].key
    assert (second.spec, second.digest) == (first.spec, first.digest)


@pytest.mark.parametrize("number", [0, 1])
def test_a_program_on_disk_gets_the_weights_of_its_own_checkpoint(
    exported: tuple[Store, list[Program]], number: int
) -> None:
    program = exported[1][number]
    module = load_program(program).module()

    with torch.no_grad():
        (found,) = module(torch.from_numpy(IMAGES))
        (wanted,) = (seeded_module(ARCH, seed=number)(torch.from_numpy(IMAGES)),)
    assert torch.equal(found, wanted)


def test_no_weight_lies_in_a_program_on_disk(exported: tuple[Store, list[Program]]) -> None:
    store, (first, second) = exported
    held = b"".join(path.read_bytes() for path in (first.path, *store.folder.rglob("*")) if path.is_file())
    for name, tensor in seeded_module(ARCH, seed=0).state_dict().items():
        if tensor.numel() > 16:
            assert tensor.numpy().tobytes() not in held, name
    assert second.path.stat().st_size < 2_000_000


def test_work_on_it_has_the_same_key_with_and_without_the_graph(exported: tuple[Store, list[Program]]) -> None:
    keys = set()
    for program in exported[1]:
        for weights in (weights_of(load_program(program)), weights_without_graph(program)):
            if weights is not None:
                keys.add(work_key(program, weights, format="onnx", settings={}, target=target()))
    assert len(keys) == 1


def test_an_artifact_of_it_computes_with_the_weights_of_its_own_checkpoint(
    exported: tuple[Store, list[Program]], tmp_path: Path
) -> None:
    made = run_alone("onnx", export_onnx, exported[1][1], target=target(), folder=tmp_path).value

    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"INPUT__0": IMAGES})
    with torch.no_grad():
        wanted, other = (seeded_module(ARCH, seed=seed)(torch.from_numpy(IMAGES)).numpy() for seed in (1, 0))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, other, rtol=1e-2)


def same(module: Any) -> None:
    """As it was built."""


def other_pooling(module: Any) -> None:
    module.features[2].ceil_mode = False


def strided(module: Any) -> None:
    weight = module.features[0].weight
    module.features[0].weight = nn.Parameter(weight.to(memory_format=torch.channels_last), requires_grad=False)


def shared(module: Any) -> None:
    module.features[4].expand1x1.weight = module.features[3].expand1x1.weight


def with_constant(module: Any, value: float = 2.0) -> None:
    module.register_buffer("grid", torch.tensor([1.0, value]), persistent=False)


def with_other_constant(module: Any) -> None:
    with_constant(module, 3.0)


def in_training(module: Any) -> None:
    module.train()


def test_what_decides_the_graph_decides_the_key(tmp_path: Path) -> None:
    checkpoint = read(tmp_path, 0)
    other = read(tmp_path / "other", 0, arch="squeezenet1_0")
    keys = [program_key(other, build_module(other), max_batch=4)]
    keys += [program_key(checkpoint, build_module(checkpoint), max_batch=1)]
    changes = (same, other_pooling, strided, shared, with_constant, with_other_constant, in_training)
    for change in changes:
        module = build_module(checkpoint)
        change(module)
        keys.append(program_key(checkpoint, module, max_batch=4))

    assert None not in keys
    assert len(set(keys)) == len(changes) + 2


def test_the_values_of_weights_and_the_file_do_not(tmp_path: Path) -> None:
    checkpoints = [read(tmp_path / str(seed), seed) for seed in (0, 1)]
    checkpoints.append(checkpoints[0].model_copy(update={"name": "other", "how": "inferred", "notes": ("a note",)}))
    keys = {program_key(one, build_module(one), max_batch=4) for one in checkpoints}
    assert len(keys) == 1


class Own(torch.Tensor):
    """A tensor with code of its own, as quantized ones are."""


class Mine(nn.ReLU):
    """The user's own class, which might read anything."""


def patched(module: Any) -> None:
    module.features[1].forward = lambda rows: rows


def patched_class(module: Any) -> None:
    kind = type(module.features[1])
    module.features[1].__class__ = type(kind.__name__, (kind,), {"forward": lambda _, rows: rows})
    type(module.features[1]).__module__ = kind.__module__


def with_a_tensor_of_its_own_kind(module: Any) -> None:
    module.features[0].weight = nn.Parameter(Own(module.features[0].weight.detach()), requires_grad=False)


def hooked(module: Any) -> None:
    module.features[1].register_forward_hook(lambda *_: None)


def replaced(module: Any) -> None:
    module.features[1] = Mine()


def holding_a_function(module: Any) -> None:
    module.features[1].scale = lambda: 2.0


def holding_a_module(module: Any) -> None:
    module.features[1].others = [Mine()]


def holding_a_partial(module: Any) -> None:
    module.features[1].scale = functools.partial(patched, module)


@pytest.mark.parametrize(
    "change",
    [
        patched,
        patched_class,
        with_a_tensor_of_its_own_kind,
        hooked,
        replaced,
        holding_a_function,
        holding_a_module,
        holding_a_partial,
    ],
)
def test_code_of_others_has_no_key(change: Callable[[Any], None], tmp_path: Path) -> None:
    checkpoint = read(tmp_path, 0)
    module = build_module(checkpoint)
    assert program_key(checkpoint, module, max_batch=4) is not None
    change(module)
    assert program_key(checkpoint, module, max_batch=4) is None


CONSTANT = Path("constant.txt")


class FromFile(nn.Module):
    """A forward that follows a weight's value and a file's text, neither of which a graph shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.sign = nn.Parameter(torch.ones(()))

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        loaded = super().load_state_dict(*args, **kwargs)
        self.positive = bool(self.sign.item() > 0)
        return loaded

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = self.layer(rows) * float(CONSTANT.read_text())
        return scaled if self.positive else -scaled


@pytest.mark.parametrize("change", ["the file", "the weight"])
def test_a_factorys_module_is_exported_every_time(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CONSTANT.write_text("2")
    store = Store(folder=tmp_path / "store")
    rows = torch.randn(2, 4)
    module = FromFile()
    for turn in ("before", "after"):
        if turn == "after" and change == "the file":
            CONSTANT.write_text("3")
        if turn == "after" and change == "the weight":
            module.sign = nn.Parameter(-torch.ones(()))
        path = save_state_dict(module, tmp_path / f"{turn}.pt")
        checkpoint = read_checkpoint(CheckpointRequest(path=path, factory=f"{__name__}:FromFile", input_shapes=((4,),)))
        (tmp_path / turn).mkdir()
        program = export_program(checkpoint, max_batch=4, folder=tmp_path / turn, store=store)

        with torch.no_grad():
            (found,) = load_program(program).module()(rows)
            (wanted,) = positional(build_module(checkpoint))(rows)
        assert program.reused is None and store.entries() == ()
        assert torch.equal(found, wanted)


def test_a_damaged_entry_is_exported_again(exported: tuple[Store, list[Program]], tmp_path: Path) -> None:
    kept, _ = exported
    store = Store(folder=tmp_path / "store")
    shutil.copytree(kept.folder, store.folder)
    (entry,) = store.entries()
    path = entry.folder / "program.pt2"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (tmp_path / "out").mkdir()

    again = export_program(read(tmp_path, 1), max_batch=4, folder=tmp_path / "out", store=store)

    assert again.reused is None


def test_other_weights_than_the_graph_was_made_for_are_refused(exported: tuple[Store, list[Program]]) -> None:
    program, checkpoint = load_program(exported[1][0]), exported[1][0].checkpoint
    module: Any = seeded_module(ARCH, seed=0)
    assert checkpoint is not None
    assert holds_only(fill(program, module), module, checkpoint)
    module.features[0].weight = nn.Parameter(module.features[0].weight.double())
    assert not holds_only(program, module, checkpoint)
    with pytest.raises(UnfinishedError, match=r"features\.0\.weight.*float64"):
        fill(program, module)


def test_a_program_in_another_precision_keeps_its_weights(tmp_path: Path) -> None:
    checkpoint = read(tmp_path, 0)
    module = build_module(checkpoint, "float16")
    program = torch.export.export(module, (torch.zeros(1, 3, 64, 64, dtype=torch.float16),))
    assert not holds_only(program, module, checkpoint)
    assert program_key(checkpoint, module, max_batch=1) is None
    assert holds_only(program, module, checkpoint.model_copy(update={"dtype": "float16"}))


@pytest.mark.slow
def test_a_whole_conversion_of_it_compiles_nothing(tmp_path: Path) -> None:
    store = Store(folder=tmp_path / "store")
    made = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        checkpoint = read(tmp_path, seed)
        made.append(convert(checkpoint, replace(plan(tmp_path / str(seed)), store=store), Silent()))
        assert not made[-1].failures
    assert made[1].program.reused and all(one.reused for one in made[1].artifacts.values())
