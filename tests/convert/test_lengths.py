"""Forwards that ask `len` for their batch are exported for any batch."""

import builtins

import pytest
import torch
from torch import Tensor, nn

from deploy.convert.lengths import lengths_unbound
from deploy.convert.traced import traceable

ROWS = torch.export.Dim("batch", min=1, max=8)


class Counts(nn.Module):
    """Rows flattened, picked and filled up by `len`, which is 3 for what holds no rows."""

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        flat = rows.view(len(rows), -1)
        last = rows[torch.arange(len(rows)), [*range(len(rows.shape))][1]]
        return torch.cat([flat, torch.ones(len(flat), len(rows[0]))], 1), last / len(rows)


def exported(module: nn.Module, rows: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(module, (rows,), dynamic_shapes=({0: ROWS},), strict=False)


def test_a_batch_that_len_counts_stays_open() -> None:
    rows = torch.arange(24.0).view(2, 3, 4)
    with pytest.raises(Exception, match="constant"):
        exported(Counts(), rows)
    with traceable():
        program = exported(Counts(), rows).module()
    for count in (1, 2, 5):
        more = torch.rand(count, 3, 4)
        for found, wanted in zip(program(more), Counts()(more), strict=True):
            torch.testing.assert_close(found, wanted)


def test_len_is_pythons_own_again_whatever_happens() -> None:
    plain = builtins.len
    with pytest.raises(RuntimeError, match="once"), lengths_unbound():
        assert len([1, 2]) == 2
        assert type(len(torch.zeros(3, 1))) is int
        with pytest.raises(TypeError, match="len"):
            len(torch.tensor(1.0))
        raise RuntimeError("once")
    assert builtins.len is plain
