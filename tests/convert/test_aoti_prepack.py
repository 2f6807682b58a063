"""Weights folded and packed as an archive is opened: an equal graph, the checkpoint's own weights, kept code."""

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy.cache import Store
from deploy.checkpoint.load import read_checkpoint
from deploy.checkpoint.model import CheckpointRequest
from deploy.convert.aoti import compile_aoti
from deploy.convert.aoti_prepack import PREPACK, prepack
from deploy.convert.export import export_program
from deploy.convert.model import Artifact, Program
from deploy.convert.prepack_graph import fold_batch_norms, sum_single_pixels
from deploy.convert.tactics import Tactic, alternatives
from deploy.errors import UnfinishedError
from deploy.processes import Worker, run_alone
from deploy.validate.executables import AotiModel
from tests.convert.awkward import awkward
from tests.convert.helpers import target
from tests.models import IMAGE

ROWS = 3
PREPACKED = next(one for one in alternatives("aoti", "normal") if PREPACK in one.options)
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


def refusals() -> list[str]:
    from torch._inductor import config

    known = set(config.get_config_copy())
    return [
        refusal(Block("bare"), known),
        refusal(nn.ReLU(), known),
        refusal(Block("bare"), known - {"aot_inductor.custom_ops_to_c_shims"}),
    ]


def refusal(module: nn.Module, known: set[str]) -> str:
    exported = torch.export.export(module.eval(), (torch.randn(2, 4, 9, 9),), strict=False)
    try:
        prepack(exported.module(check_guards=False), known=known)
    except UnfinishedError as error:
        return error.found
    return ""


def test_what_cannot_be_packed_is_told_before_it_is_compiled() -> None:
    fine, nothing, old = run_alone("refusals", refusals).value

    assert fine == ""
    assert "no weights" in nothing
    assert "custom_ops_to_c_shims" in old


def exported(folder: Path, seed: int) -> Program:
    folder.mkdir()
    path = folder / "awkward.pt"
    torch.save(awkward(seed).state_dict(), path)
    request = CheckpointRequest(path=path, factory="tests.convert.awkward:Awkward", input_shapes=(IMAGE,))
    checkpoint = run_alone("read", read_checkpoint, request).value
    return run_alone("export", export_program, checkpoint, max_batch=4, folder=folder).value


def compiled(program: Program, folder: Path, store: Store, tactic: Tactic) -> Artifact:
    return run_alone("prepack", compile_aoti, program, target=target(), folder=folder, store=store, tactic=tactic).value


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
        made = compiled(exported(folder, seed), folder, store, PREPACKED)

        assert packings(made.path) == {"convolution": 1, "linear": 3}
        assert (made.reused is None) == (seed == 0)
        assert made.details["tactic"] == PREPACKED.name
        with Worker("model", log=Path(os.devnull)) as worker:
            worker.make(AotiModel, made.path, threads=1)
            found = [worker.call("run", [image[:rows]])[0] for rows in (ROWS, 1, ROWS)]
        with torch.no_grad():
            wanted = awkward(seed)(torch.from_numpy(image)).numpy()
        for answer in found:
            np.testing.assert_allclose(answer, wanted[: len(answer)], rtol=1e-4, atol=1e-5)
