"""Networks whose code asks something of a size that holds for all sizes, which torch cannot tell."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import guard_or_false
from torch.nn import functional
from torch.utils._sympy.functions import FloorDiv

from deploy.checkpoint.load import read_checkpoint
from deploy.checkpoint.model import Checkpoint
from deploy.convert import every_size
from deploy.convert.aoti import compile_aoti
from deploy.convert.every_size import Tries, sizes_tried
from deploy.convert.export import export_program, load_program
from deploy.convert.traced import traceable
from deploy.errors import UnfinishedError
from deploy.processes import Worker, run_alone
from deploy.validate.executables import AotiModel
from tests.convert.helpers import target
from tests.signatures.models import ask

SMALLEST, LARGEST = 5, 40


def cut_to_the_smaller(image: Tensor) -> Tensor:
    larger = functional.interpolate(functional.max_pool2d(image, 2), scale_factor=2)
    return image[:, :, : larger.shape[2], : larger.shape[3]] + larger


def cut_to_the_image(image: Tensor) -> Tensor:
    larger = functional.interpolate(functional.max_pool2d(image, 2, ceil_mode=True), scale_factor=2)
    return larger[:, :, : image.shape[2], : image.shape[3]] + image


def padded_to_a_multiple(image: Tensor) -> Tensor:
    height, width = image.shape[2:]
    padded = functional.pad(image, (0, -width % 4, 0, -height % 4))
    return padded.cos()[:, :, :height, :width]


def larger_by_a_whole_factor(image: Tensor) -> Tensor:
    return functional.interpolate(image, scale_factor=3, mode="bicubic")


def shifted_by_a_view(image: Tensor) -> Tensor:
    """Relative positions as in Transformer-XL: columns of a wider matrix become diagonals."""
    rows, columns = image.shape[2:]
    wide = functional.pad(image, (0, 1)).flatten(2)[:, :, : rows * columns]
    return wide.view(image.shape)


def distances(image: Tensor) -> Tensor:
    points = image.flatten(2).transpose(1, 2)
    return torch.cdist(points, points[:, :30] + 9).amin(2)


def pooled_twice_and_joined(image: Tensor) -> Tensor:
    """As a U-Net that pools with `ceil_mode`: whether a cut leaves all of the larger map depends on the size."""
    half = functional.max_pool2d(image, 2, ceil_mode=True)
    quarter = functional.max_pool2d(half, 2, ceil_mode=True)
    for smaller in (half, image):
        larger = functional.interpolate(quarter, scale_factor=2)
        quarter = torch.cat([smaller, larger[:, :, : smaller.shape[2], : smaller.shape[3]]], 1)
    return quarter


NETWORKS = (
    cut_to_the_smaller, cut_to_the_image, padded_to_a_multiple, larger_by_a_whole_factor, shifted_by_a_view, distances,
)  # fmt: skip


class Applied(nn.Module):
    """A function behind a convolution of images of any size."""

    def __init__(self, function: Callable[[Tensor], Tensor] = cut_to_the_image) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 2, 1)
        self.function = function

    def forward(self, image: Tensor) -> Tensor:
        return self.function(self.body(image))


class Joined(Applied):
    def __init__(self) -> None:
        super().__init__(pooled_twice_and_joined)


def images() -> list[Tensor]:
    sizes = ((5, 40), (6, 7), (19, 18), (29, 31), (40, 32))
    return [torch.randn(1 + height % 3, 1, height, width) for height, width in sizes]


@pytest.mark.parametrize("function", NETWORKS, ids=lambda one: one.__name__)
def test_it_is_exported_for_every_size(function: Callable[[Tensor], Tensor]) -> None:
    network, axes = Applied(function).eval(), ("height", "width")
    dims = {axis: torch.export.Dim(name, min=SMALLEST, max=LARGEST) for axis, name in enumerate(axes, start=2)}
    shapes = ({0: torch.export.Dim("batch", min=1, max=4), **dims},)

    with traceable(), sizes_tried(), torch.no_grad():
        exported = torch.export.export(network, (torch.zeros(2, 1, 21, 22),), dynamic_shapes=shapes, strict=False)

    for image in images():
        torch.testing.assert_close(exported.module()(image), network(image))


def test_a_question_with_two_answers_still_binds() -> None:
    def even(image: Tensor) -> Tensor:
        return image * 2 if image.shape[2] % 2 else image

    shapes = ({2: torch.export.Dim("height", min=SMALLEST, max=LARGEST)},)
    with pytest.raises(Exception, match="height"), traceable(), sizes_tried():
        torch.export.export(Applied(even), (torch.zeros(2, 1, 21, 22),), dynamic_shapes=shapes, strict=False)


def traced(function: Callable[[Tensor], Tensor], **words: Any) -> tuple[torch.export.ExportedProgram, Tries]:
    """Of two images of any size; the sample's sizes are even."""
    dims = {axis: torch.export.Dim(name, min=SMALLEST, max=LARGEST) for axis, name in ((2, "height"), (3, "width"))}
    torch.manual_seed(0)
    with traceable(), sizes_tried(**words) as tries, torch.no_grad():
        made = torch.export.export(
            Applied(function).eval(), (torch.zeros(2, 1, 22, 24),), dynamic_shapes=(dims,), strict=False
        )
    return made, tries


def asks_whether_it_is_known(image: Tensor) -> Tensor:
    """As torch's own code asks for the quicker of two ways, which fits where that is known."""
    return image * 2 if guard_or_false(image.shape[2] // 2 * 2 <= image.shape[2]) else image * 3


def test_what_is_too_long_to_try_binds_unless_there_is_a_general_way() -> None:
    one = torch.zeros(2, 1, 6, 5)
    with pytest.raises(Exception, match="Constraints violated"):
        traced(cut_to_the_image, steps=0)

    (quick, tried), (general, untried) = (
        traced(asks_whether_it_is_known, general=True, **words) for words in ({}, {"steps": 0})
    )

    assert (tried.untried, untried.untried) == (0, 1)
    torch.testing.assert_close(general.module()(one) * 2, quick.module()(one) * 3)


def test_many_questions_have_an_end() -> None:
    tries, size = Tries(steps=300), sympy.Symbol("size", integer=True, positive=True)
    answers = [tries.answers(FloorDiv(size, 2) * 2 <= size + number, ((size, range(5, 20)),)) for number in range(20)]
    assert answers[0] == frozenset({True}) and answers[-1] is None
    assert 0 <= tries.steps < 300
    assert tries.untried == answers.count(None)


def test_a_network_that_is_refused_for_the_sizes_of_the_sample_is_exported_for_any(tmp_path: Path) -> None:
    network, words = Joined(), {"dynamic": (f"image:2,3={SMALLEST}..{LARGEST}",)}
    checkpoint = read_checkpoint(ask(network, tmp_path / "m.pt", ("1,20,20",), **words))
    program = run_alone("export", export_program, checkpoint, max_batch=4, folder=tmp_path).value
    whole = load_program(program).module()
    for image in images():
        torch.testing.assert_close(whole(image), [network(image)])


def export_untried(checkpoint: Checkpoint, folder: Path) -> None:
    every_size._MOST = 0
    export_program(checkpoint, max_batch=4, folder=folder)


def test_it_is_said_that_questions_were_not_tried(tmp_path: Path) -> None:
    network, words = Applied(), {"dynamic": (f"image:2,3={SMALLEST}..{LARGEST}",)}
    checkpoint = read_checkpoint(ask(network, tmp_path / "m.pt", ("1,20,20",), **words))
    with pytest.raises(
        UnfinishedError, match=r"does not take every size.*question\(s\) about sizes were too long to try"
    ):
        run_alone("export", export_untried, checkpoint, tmp_path)


def test_torch_is_left_as_it_was() -> None:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    before = ShapeEnv._evaluate_expr, torch.cdist, torch.functional.cdist
    with traceable(), sizes_tried(general=True):
        assert ShapeEnv._evaluate_expr is not before[0] and torch.cdist is not before[1]
    assert before == (ShapeEnv._evaluate_expr, torch.cdist, torch.functional.cdist)


def test_an_archive_pools_images_of_every_size_to_their_end(tmp_path: Path) -> None:
    """The compiler takes `ceil_mode` for none where it changes nothing in the traced sample, and asks nobody else."""
    network, words = Applied(), {"dynamic": (f"image:2,3={SMALLEST}..{LARGEST}",)}
    checkpoint = read_checkpoint(ask(network, tmp_path / "m.pt", ("1,20,20",), **words))
    program = run_alone("export", export_program, checkpoint, max_batch=4, folder=tmp_path).value
    archive = run_alone("compile", compile_aoti, program, target=target(), folder=tmp_path).value.path

    with Worker("model", log=Path(os.devnull)) as worker, torch.no_grad():
        worker.make(AotiModel, archive, threads=1)
        for image in images():
            (found,) = worker.call("run", [image.numpy()])
            torch.testing.assert_close(torch.from_numpy(found), network(image))
