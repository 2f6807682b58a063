"""A linear layer of a transposed input stays one product in the archive, and answers as eager does."""

import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deploy.convert.aoti import compile_aoti
from deploy.convert.export import export_program
from deploy.processes import Worker, run_alone
from deploy.validate.executables import AotiModel
from tests.convert.helpers import Read, target

ROWS, WORDS, WIDTH = 3, 5, 8


class Transposed(nn.Module):
    """Words first, as `nn.MultiheadAttention` has them inside, to a layer and to a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 2 * WIDTH)
        self.matrix = nn.Parameter(torch.randn(2 * WIDTH, WIDTH))

    def forward(self, words: Tensor) -> Tensor:
        inside: Tensor = self.layer(words.tanh().transpose(0, 1)).relu()
        return inside.transpose(0, 1) @ self.matrix


def test_a_transposed_input_is_one_product_of_two_matrices(read: Read, tmp_path: Path) -> None:
    checkpoint = read(Transposed, (WORDS, WIDTH))
    program = run_alone("export", export_program, checkpoint, max_batch=4, folder=tmp_path).value
    archive = run_alone("compile", compile_aoti, program, target=target(), folder=tmp_path).value.path

    with zipfile.ZipFile(archive) as packed:
        source = "".join(packed.read(name).decode() for name in packed.namelist() if name.endswith("wrapper.cpp"))
    called = source.split("::run_impl")[1]
    assert "_bmm_out(" not in called
    assert called.count("mm_out(") == 2

    words = np.random.default_rng(0).standard_normal((ROWS, WORDS, WIDTH)).astype(np.float32)
    torch.manual_seed(0)
    module = Transposed()  # as `read` saved it
    with Worker("model", log=Path(os.devnull)) as worker:
        worker.make(AotiModel, archive, threads=1)
        found = [worker.call("run", [words[:rows]])[0] for rows in (ROWS, 1)]
    with torch.no_grad():
        wanted = module(torch.from_numpy(words)).numpy()
    for answer in found:
        np.testing.assert_allclose(answer, wanted[: len(answer)], rtol=1e-5, atol=1e-5)
