"""What products and attention read is put in order, and an archive answers as eager does."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.functional import scaled_dot_product_attention

from deploy.convert.aoti import compile_aoti
from deploy.convert.export import export_program
from deploy.convert.input_order import order_inputs
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


class Masked(nn.Module):
    """Attention under a mask that is computed, or the same everywhere, as transformers make it where none is given."""

    def __init__(self, *, everywhere: bool, by_name: bool) -> None:
        super().__init__()
        self.everywhere = everywhere
        self.by_name = by_name

    def forward(self, x: Tensor) -> Tensor:
        rows, heads, words, _ = x.shape
        one = x.new_ones((), dtype=torch.bool) if self.everywhere else x.new_ones(rows, 1, words, words).tril() > 0
        mask = one.expand(rows, heads, words, words)
        if self.by_name:
            return scaled_dot_product_attention(x, x, x, attn_mask=mask)
        return scaled_dot_product_attention(x, x, x, mask)


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_mask_lies_in_order(everywhere: bool, by_name: bool) -> None:
    module, x = Masked(everywhere=everywhere, by_name=by_name), torch.randn(ROWS, 2, WORDS, WIDTH)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: Dim("batch", min=1, max=8)},), strict=False)
    graph = exported.module(check_guards=False)
    assert isinstance(graph, torch.fx.GraphModule)
    before = mask_of(graph)
    assert before.meta["val"].stride()[-1] == (0 if everywhere else 1)

    order_inputs(graph)

    after = mask_of(graph)
    assert (after is before) is not everywhere
    assert after.meta["val"].stride()[-1] == 1
    torch.testing.assert_close(graph(x[:2]), module(x[:2]))


def mask_of(graph: torch.fx.GraphModule) -> torch.fx.Node:
    (attention,) = graph.graph.find_nodes(
        op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default
    )
    found = attention.kwargs.get("attn_mask") or attention.args[3]
    assert isinstance(found, torch.fx.Node)
    return found


def test_what_several_read_is_put_in_order_once() -> None:
    module, x = nn.ModuleList(nn.Linear(WIDTH, 4) for _ in range(3)), torch.randn(ROWS, WORDS, WIDTH)
    module.requires_grad_(False)

    class Several(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            turned = x.transpose(0, 1)
            return sum((layer(turned) for layer in module), start=torch.zeros(()))

    graph = torch.export.export(Several(), (x,), strict=False).module(check_guards=False)
    assert isinstance(graph, torch.fx.GraphModule)
    order_inputs(graph)
    made = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.contiguous.default)
    assert len(made) == 1
    assert len(made[0].users) == 3
