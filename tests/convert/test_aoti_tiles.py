"""Sums by index in an archive: behind a convolution, whose channels lie last, they are computed in tiles."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploy.convert.aoti import compile_aoti
from deploy.convert.export import export_program
from deploy.processes import Worker, run_alone
from deploy.validate.executables import AotiModel
from tests.convert.helpers import Read, target


class Folded(nn.Module):
    """Patches that overlap, each changed by itself and put together again; and rows added where ids say."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(2, 4, 3, padding=1)
        self.register_buffer("places", torch.tensor([0, 5, 5, 2, 0, 1, 7, 3, 3, 6, 4, 0]))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(image).relu()
        patches = functional.unfold(x, 3, padding=1, stride=2)
        folded = functional.fold(patches, (12, 16), 3, padding=1, stride=2)
        rows = torch.zeros(x.shape[0], 4, 8, 16).index_add(2, self.get_buffer("places"), x)
        return folded, rows


def test_each_is_added_where_it_belongs(read: Read, tmp_path: Path) -> None:
    program = run_alone("export", export_program, read(Folded, (2, 12, 16)), max_batch=4, folder=tmp_path).value
    archive = run_alone("compile", compile_aoti, program, target=target(), folder=tmp_path).value.path
    torch.manual_seed(0)  # as the checkpoint was made
    network = Folded().eval()
    with Worker("model", log=Path(os.devnull)) as worker, torch.no_grad():
        worker.make(AotiModel, archive, threads=2)
        for rows in (1, 3, 4):
            image = torch.randn(rows, 2, 12, 16)
            for found, wanted in zip(worker.call("run", [image.numpy()]), network(image), strict=True):
                torch.testing.assert_close(torch.from_numpy(found), wanted)
