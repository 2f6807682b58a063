"""An archive that is compiled where there are few threads, and run where there are many."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy.checkpoint.load import read_checkpoint
from deploy.checkpoint.model import CheckpointRequest
from deploy.convert import aoti
from deploy.convert.aoti import compile_aoti
from deploy.convert.export import export_program
from deploy.convert.model import Artifact
from deploy.processes import run_alone
from deploy.repository.preflight import read_most_threads
from deploy.validate.executables import AotiModel
from tests.convert.helpers import target

SIZES = (400_000,)
MANY = 24  # far above the compiler's two, so that what is written beyond the room for two is another one's


class Normal(nn.Module):
    """A sum over all elements of a row, which threads share, and a loop that is too small for them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, row: Tensor) -> tuple[Tensor, Tensor]:
        return (row - row.mean()) / (row.std() + 1e-5), self.scale * row.reshape(-1)[:4].sin()


def compiled_with_two_threads(folder: Path) -> Artifact:
    torch.set_num_threads(2)
    path = folder / "checkpoint.pt"
    torch.save(Normal().state_dict(), path)
    request = CheckpointRequest(path=path, factory=f"{__name__}:Normal", input_shapes=(SIZES,))
    program = export_program(read_checkpoint(request), max_batch=1, folder=folder)
    return compile_aoti(program, target=target(), folder=folder)


def compiled_as_before(folder: Path) -> Artifact:
    vars(aoti).update(DYNAMIC_THREADS={"cpp.dynamic_threads": False})
    return compiled_with_two_threads(folder)


def answers(archive: Path, row: np.ndarray, threads: int) -> list[np.ndarray]:
    model = AotiModel(archive, threads=threads)
    return model.run([row])


def test_an_archive_is_right_with_more_threads_than_it_was_compiled_with(tmp_path: Path) -> None:
    made = run_alone("compile", compiled_with_two_threads, tmp_path).value
    row = np.random.default_rng(0).standard_normal((1, *SIZES)).astype(np.float32)

    with torch.no_grad():
        wanted = [one.numpy() for one in Normal()(torch.from_numpy(row))]
    for threads in (1, MANY):
        for answer, right in zip(run_alone("model", answers, made.path, row, threads).value, wanted, strict=True):
            np.testing.assert_allclose(answer, right, rtol=1e-4, atol=1e-5)
    assert read_most_threads(made.path) is None
    assert loops_with_threads(made.path) == 2  # the sum and what it is for; not the loop over four elements


@pytest.mark.slow
def test_an_archive_of_before_says_how_many_threads_it_has_room_for(tmp_path: Path) -> None:
    assert read_most_threads(run_alone("compile", compiled_as_before, tmp_path).value.path) == 2


def loops_with_threads(archive: Path) -> int:
    with zipfile.ZipFile(archive) as packed:
        text = "".join(packed.read(name).decode() for name in packed.namelist() if name.endswith("kernel.cpp"))
    return text.count("#pragma omp for")
