"""Weights folded and packed as an archive is opened: an equal graph, the checkpoint's own weights, kept code."""

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy.cache import Store
from deploy.checkpoint.load import read_checkpoint
from deploy.checkpoint.model import CheckpointRequest
from deploy.convert import aoti, prepack_graph
from deploy.convert.aoti import compile_aoti
from deploy.convert.aoti_prepack import PREPACK, is_packed, prepack
from deploy.convert.export import export_program
from deploy.convert.model import Artifact, Program
from deploy.convert.prepack_graph import fold_batch_norms, sum_single_pixels
from deploy.errors import UnfinishedError
from deploy.processes import Worker, run_alone
from deploy.validate.executables import AotiModel
from tests.convert.awkward import awkward
from tests.convert.helpers import target
from tests.models import IMAGE

ROWS = 3
FOLDED = ("bare", "bias", "grouped", "plain")
LEFT = ("read twice", "of the batch")


class Block(nn.Module):
    """A convolution and a normalization, in the ways that networks have them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        groups = 4 if how == "grouped" else 1
        self.convolution = nn.Conv2d(4, 8, 3, groups=groups, bias=how == "bias")
        self.normalization = nn.BatchNorm2d(8, affine=how != "plain", track_running_stats=how != "of the batch")

    def forward(self, image: Tensor) -> Tensor:
        rows = self.convolution(image)
        normal = self.normalization(rows)
        return normal + rows if self.how == "read twice" else normal  # type: ignore[no-any-return]


def block(how: str) -> nn.Module:
    torch.manual_seed(0)
    module = Block(how)
    with torch.no_grad():
        module.train()(torch.randn(16, 4, 9, 9) + 1)
        for tensor in module.normalization.parameters():
            tensor.uniform_(0.5, 1.5)
    return module.eval()


def folded(ways: Iterable[str], image: Tensor) -> dict[str, tuple[int, Tensor]]:
    found = {}
    for how in ways:
        module = torch.export.export(block(how), (image,), strict=False).module(check_guards=False)
        with torch.no_grad():
            found[how] = (fold_batch_norms(module), module(image))
    return found


def test_a_normalization_by_stored_statistics_becomes_the_convolutions_own() -> None:
    image = torch.randn(2, 4, 9, 9)

    found = run_alone("fold", folded, (*FOLDED, *LEFT), image).value

    assert [how for how, (count, _) in found.items() if count] == [*FOLDED]
    for how, (_, answer) in found.items():
        with torch.no_grad():
            torch.testing.assert_close(answer, block(how)(image), rtol=1e-5, atol=1e-5)


class Excitation(nn.Module):
    """Channels weighed by what is in them, and beside it convolutions that are no such block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.squeeze, self.excite = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1, bias=False)
        self.grouped, self.padded, self.many = (
            nn.Conv2d(4, 4, 1, groups=2),
            nn.Conv2d(4, 4, 1, padding=1),
            nn.Conv2d(4, 70_000, 1),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        pixel = image.mean((2, 3), keepdim=True)
        weights = self.excite(self.squeeze(pixel).relu()).sigmoid()
        return image * weights, self.grouped(pixel), self.padded(pixel), self.many(pixel), self.squeeze(image)


def summed(image: Tensor) -> tuple[int, tuple[Tensor, ...]]:
    batch = torch.export.Dim("batch", min=1, max=4)
    exported = torch.export.export(Excitation().eval(), (image,), dynamic_shapes=({0: batch},), strict=False)
    module = exported.module(check_guards=False)
    with torch.no_grad():
        return sum_single_pixels(module), module(image[:1])


def test_small_convolutions_of_one_pixel_become_sums() -> None:
    image = torch.randn(3, 4, 5, 5)

    count, found = run_alone("sum", summed, image).value

    assert count == 2
    with torch.no_grad():
        for answer, wanted in zip(found, Excitation()(image[:1]), strict=True):
            torch.testing.assert_close(answer, wanted, rtol=1e-5, atol=1e-5)


class Quantized(nn.Module):
    """A layer whose weight is kept as small integers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Buffer(torch.ones(512, 512, dtype=torch.int8))

    def forward(self, rows: Tensor) -> Tensor:
        return nn.functional.linear(rows, self.weight.float())


class Half(nn.Module):
    """A layer that computes in half precision and answers in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(512, 512).to(torch.bfloat16)

    def forward(self, rows: Tensor) -> Tensor:
        return self.layer(rows.to(torch.bfloat16)).float()  # type: ignore[no-any-return]


class Covariance(nn.Module):
    """A large product of two activations, and not of a weight."""

    def forward(self, rows: Tensor) -> Tensor:
        wide = rows.repeat(512, 1)
        return torch.mm(wide, wide.transpose(0, 1))


class Normed(nn.Module):
    """A layer whose weight is computed of its parameters alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(512, 512))

    def forward(self, rows: Tensor) -> Tensor:
        return nn.functional.linear(rows, nn.functional.normalize(self.weight, dim=1))


PACKABLE: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "images": (Block("bare"), (4, 9, 9)),
    "many weights": (nn.Linear(512, 512), (512,)),
    "many rows": (nn.Linear(64, 64), (1000, 64)),
    "computed of weights": (Normed(), (512,)),
}
LEFT_ALONE: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "nothing": (nn.ReLU(), (4, 9, 9)),
    "one channel": (nn.Conv2d(1, 8, 3), (1, 9, 9)),
    "one pixel": (nn.Conv2d(4, 8, 3, padding=2), (4, 1, 1)),
    "few weights": (nn.Linear(64, 64), (64,)),
    "small integers": (Quantized(), (512,)),
    "half precision": (Half(), (512,)),
    "activations": (Covariance(), (512,)),
}


def packs(
    modules: Iterable[tuple[nn.Module, tuple[int, ...]]], without: str = "", large: int = prepack_graph._LARGE
) -> list[bool]:
    """Whether each module is compiled with packed weights, by a torch that does not know the setting `without`.

    `large` is how many bytes of weights are too many.
    """
    from torch._inductor import config

    prepack_graph._LARGE = large

    known, batch, found = set(config.get_config_copy()) - {without}, torch.export.Dim("batch", min=1, max=4), []
    for module, sizes in modules:
        exported = torch.export.export(
            module.eval().requires_grad_(False), (torch.randn(2, *sizes),), dynamic_shapes=({0: batch},), strict=False
        )
        found.append(bool(prepack(exported.module(check_guards=False), known=known)))
    return found


def test_weights_are_packed_where_that_is_right_and_pays() -> None:
    found = run_alone("packs", packs, [*PACKABLE.values(), *LEFT_ALONE.values()]).value

    assert dict(zip([*PACKABLE, *LEFT_ALONE], found, strict=True)) == {
        **dict.fromkeys(PACKABLE, True),
        **dict.fromkeys(LEFT_ALONE, False),
    }


def test_nothing_is_packed_by_a_torch_that_does_not_know_how() -> None:
    setting = "aot_inductor.custom_ops_to_c_shims"

    assert run_alone("packs", packs, [*PACKABLE.values()], setting).value == [False] * len(PACKABLE)


def test_more_weights_than_memory_is_allowed_for_are_not_packed() -> None:
    layer = PACKABLE["many weights"]
    size = sum(tensor.nbytes for tensor in layer[0].parameters())

    assert run_alone("packs", packs, [layer], "", size + 1).value == [True]
    assert run_alone("packs", packs, [layer], "", size).value == [False]


def compiled_in_vain() -> tuple[bool, list[bool]]:
    """Whether an archive ends up packed whose compilation fails where weights are, and which attempts there were."""
    attempts = []

    def compiler(module: object, exported: object, settings: dict[str, object], *, gradients: bool) -> list[object]:
        attempts.append("post_grad_custom_pre_pass" in settings)
        if attempts[-1]:
            raise UnfinishedError("AOTInductor cannot compile the program")
        return []

    aoti._run_compiler = compiler
    exported = torch.export.export(Block("bare").eval(), (torch.randn(2, 4, 9, 9),), strict=False)
    return aoti._compile_exported(exported, {PREPACK: True}).packed, attempts


def test_what_cannot_be_compiled_with_packed_weights_is_compiled_without() -> None:
    assert run_alone("in vain", compiled_in_vain).value == (False, [True, False])


class OneChannel(nn.Module):
    """Gray images: a first convolution of one channel, whose answers a second one reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 32, 3)
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        return self.second(self.first(image).relu())  # type: ignore[no-any-return]


def exported(folder: Path, seed: int) -> Program:
    return exported_of(awkward(seed), "tests.convert.awkward:Awkward", IMAGE, folder)


def exported_of(module: nn.Module, factory: str, sizes: tuple[int, ...], folder: Path) -> Program:
    folder.mkdir()
    path = folder / "checkpoint.pt"
    torch.save(module.state_dict(), path)
    request = CheckpointRequest(path=path, factory=factory, input_shapes=(sizes,))
    checkpoint = run_alone("read", read_checkpoint, request).value
    return run_alone("export", export_program, checkpoint, max_batch=4, folder=folder).value


def compiled(program: Program, folder: Path, store: Store) -> Artifact:
    return run_alone("prepack", packing_all, program, target=target(), folder=folder, store=store).value


def packing_all(program: Program, **how: Any) -> Artifact:
    """The archive with each weight packed, however few they are."""
    prepack_graph._MANY = 1
    return compile_aoti(program, **how)


def packings(archive: Path) -> dict[str, int]:
    """How often the archive packs a weight as it is opened, going by its source; the functions themselves apart."""
    with zipfile.ZipFile(archive) as packed:
        text = "".join(packed.read(name).decode() for name in packed.namelist() if name.endswith("wrapper.cpp"))
    once = text.split("::_const_run_impl")[1].split("::run_impl")[0]
    return {kind: once.count(f"aoti_torch_cpu_packed_{kind}_weight(") for kind in ("convolution", "linear")}


@pytest.mark.slow
def test_packed_code_takes_the_next_fine_tunes_weights(tmp_path: Path) -> None:
    store = Store(folder=tmp_path / "store")
    image = np.random.default_rng(0).standard_normal((ROWS, *IMAGE)).astype(np.float32)
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        made = compiled(exported(folder, seed), folder, store)

        assert packings(made.path) == {"convolution": 1, "linear": 3}
        assert (made.reused is None) == (seed == 0)
        assert is_packed(made.details)
        check_answers(made, awkward(seed), image)


@pytest.mark.slow
def test_what_follows_a_convolution_of_one_channel_is_right(tmp_path: Path) -> None:
    sizes = (1, 8, 8)
    image = np.random.default_rng(0).standard_normal((ROWS, *sizes)).astype(np.float32)
    program = exported_of(OneChannel(), f"{__name__}:OneChannel", sizes, tmp_path / "gray")

    made = compiled(program, tmp_path / "gray", Store(folder=tmp_path / "store"))

    assert packings(made.path) == {"convolution": 1, "linear": 0}
    check_answers(made, OneChannel(), image)


def check_answers(made: Artifact, module: nn.Module, image: np.ndarray) -> None:
    """Whether the archive answers as the module does, for the whole batch, a single row, and again."""
    with Worker("model", log=Path(os.devnull)) as worker:
        worker.make(AotiModel, made.path, threads=1)
        found = [worker.call("run", [image[:rows]])[0] for rows in (ROWS, 1, ROWS)]
    with torch.no_grad():
        wanted = module(torch.from_numpy(image)).numpy()
    for answer in found:
        np.testing.assert_allclose(answer, wanted[: len(answer)], rtol=1e-4, atol=1e-5)
