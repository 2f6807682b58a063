"""Arithmetic in an archive is eager's where the compiler's own is not: remainders and floors of fractions, powers."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deploy.convert.aoti import compile_aoti
from deploy.convert.export import export_program
from deploy.processes import Worker, run_alone
from deploy.validate.executables import AotiModel
from tests.convert.helpers import Read, target

# Near multiples of what they are divided by, large, and of either sign.
FRACTIONS = np.array([[1.0, 0.3, 1000.7, 2.0], [-0.3, 0.0, -1e5, -7.5], [0.7, 12.5, -1.0, 1e6]], dtype=np.float32)


class Computed(nn.Module):
    """Every way of dividing with a remainder, by numbers and by a tensor; a whole number to a power; casts and back."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.tensor([0.1, -0.1, 6.2831, 0.0]))

    def forward(self, place: Tensor) -> tuple[Tensor, ...]:
        ids = (place * 1000).long()
        return (
            place // 0.1,
            place % 0.1,
            place % 6.2831,
            torch.div(place, -0.1, rounding_mode="floor"),
            place // self.steps,
            torch.remainder(place, self.steps),
            torch.remainder(5.5, place),
            ids % 2.5,
            ids // 3,
            ids % -3,
            2 ** (ids % 5),
            place.half().float() * 3,
            (place.bfloat16() + 1).bfloat16().float(),
            (place / 1000).half().float().sin(),
            place + torch.div(torch.arange(4, dtype=torch.float32), 2, rounding_mode="floor"),  # as DETR's positions
        )


def test_an_archive_computes_as_eager_does(read: Read, tmp_path: Path) -> None:
    program = run_alone("export", export_program, read(Computed, (4,)), max_batch=4, folder=tmp_path).value
    archive = run_alone("compile", compile_aoti, program, target=target(), folder=tmp_path).value.path
    with Worker("model", log=Path(os.devnull)) as worker:
        worker.make(AotiModel, archive, threads=1)
        found = worker.call("run", [FRACTIONS])
    with torch.no_grad():
        wanted = [answer.numpy() for answer in Computed()(torch.from_numpy(FRACTIONS))]
    for answer, expected in zip(found, wanted, strict=True):
        assert answer.dtype == expected.dtype
        np.testing.assert_allclose(answer, expected, rtol=1e-6, atol=1e-6)
