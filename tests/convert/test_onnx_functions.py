"""Functions in ONNX as torch computes them, of values where the exporter's own writing has another answer or none."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from deploy.convert.onnx import _translate
from deploy.processes import run_alone

COUNTS = torch.tensor([[3, -4, 0], [7, 2, -9]])
# Large ones among small ones, a zero, ties.
FRACTIONS = torch.tensor([[1.5, -225.25, 0.0], [-7.75, 300.5, -7.75]])
INFINITE = float("inf")
PICTURE = torch.arange(-50.0, 60.0).view(1, 2, 5, 11).sin()
TURNED = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, -4.0], [1.0, 0.0, 0.5]])  # a pivot in no row of its own


def holed(counts: Tensor, fractions: Tensor) -> Tensor:
    """No number among others, and an infinity."""
    return fractions.masked_fill(counts == 0, float("nan")).masked_fill(counts == 2, INFINITE)


WRITTEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "logsigmoid": lambda _, f: nn.functional.logsigmoid(f),
    "logaddexp": lambda _, f: torch.logaddexp(f, f.flip(1)),
    "logaddexp of infinities": lambda n, f: torch.logaddexp(f / (n > 0), (f / (n > 2)).abs()),
    "logcumsumexp": lambda _, f: torch.logcumsumexp(f, 1),
    "logcumsumexp of rows": lambda _, f: torch.logcumsumexp(f, 0),
    "logcumsumexp from none": lambda n, f: torch.logcumsumexp(f.masked_fill(n > 0, -INFINITE), 1),
    "logaddexp2": lambda _, f: torch.logaddexp2(f, f.flip(1)),
    "log1p of little": lambda n, f: torch.log1p(torch.stack([n * 1e-8, f.abs(), f * 1e-4])),
    "log1p of infinities": lambda n, f: torch.log1p((f / (n == 0)).clamp(min=-0.9)),
    "expm1 of little": lambda n, f: torch.expm1(torch.stack([n * 1e-8, f.clamp(max=80), f * 1e-4])),
    "expm1 of infinities": lambda n, f: torch.expm1(f / (n == 0)),
    "infinities above": lambda n, f: (f / (n == 0)).clamp(min=-0.9),
    "infinities below": lambda n, f: (f / (n == 0)).clamp_max(0.9),
    "integers from below": lambda n, _: n.clamp(min=-2),
    "sort": lambda _, f: f.round().sort(dim=1, descending=True, stable=True).values,
    "where sort": lambda n, _: (n // 4).sort(dim=1, stable=True).indices,
    "where sort of truths": lambda n, _: (n > 0).sort(dim=1, descending=True, stable=True).indices,
    "order of sort": lambda _, f: torch.argsort((f / 400).round(), dim=1),
    "mean by index": lambda n, f: torch.zeros_like(f).scatter_reduce(1, n.abs() % 2, f, "mean", include_self=False),
    "mean by index with what was there": lambda n, f: f.scatter_reduce(1, n[:, :2].abs() % 2, f * 2, "mean"),
    "mean of integers by index": lambda n, _: n.scatter_reduce(1, n.abs() % 2, n - 3, "mean"),
    "largest by index": lambda n, f: f.scatter_reduce(1, n.abs() % 2, f * 2, "amax", include_self=False),
    "diagonal beside infinities": lambda _, f: (f.unsqueeze(1) / torch.eye(3)).diagonal(dim1=1, dim2=2),
    "another diagonal": lambda _, f: (f.unsqueeze(1) * f[:, :2].unsqueeze(2)).diagonal(1, -2, -1),
    "lower diagonal": lambda n, _: (n.unsqueeze(1) * n.unsqueeze(2) > 0).diagonal(-1, 1, 2),
    "written at int32": lambda n, f: f.index_put((torch.arange(f.shape[0]), n[:, 0].int() % 3), f[:, 1]),
    "cumprod": lambda _, f: torch.cumprod(f / 7, 1),
    "cumprod of five": lambda _, f: torch.cumprod(torch.cat([f, f[:, 1:]], 1).unsqueeze(2) / 7, -2),
    "cumprod of rows": lambda _, f: torch.cumprod(f / 7, 0),
    "cumprod of int32": lambda n, _: torch.cumprod(n.int(), 1),
    "cumprod of integers as floats": lambda n, _: torch.cumprod(n, 1, dtype=torch.float32),
    "cummax": lambda _, f: torch.cummax(f, 1).values,
    "where cummax": lambda _, f: torch.cummax(f, 1).indices,
    "cummin of rows": lambda n, _: torch.cummin(n, 0).values,
    "where cummin": lambda _, f: torch.cummin(f, 1).indices,
    "angle of zeros": lambda n, f: torch.atan2(f * 0, n.flip(1)),
    "angle of signed zeros": lambda n, f: torch.atan2(f * 0, n.flip(1) * -0.0),
    "angle of integers": lambda n, _: torch.atan2(n, n.flip(1)),
    "hypot": lambda _, f: torch.hypot(f * 1e30, f.flip(1) * 1e25),
    "mean of integers as floats": lambda n, _: n.mean(1, dtype=torch.float32),
    "softmax of halves as floats": lambda _, f: torch.softmax((f / 90).half(), 1, dtype=torch.float32),
    "log_softmax of halves as floats": lambda _, f: torch.log_softmax((f / 90).half(), 1, dtype=torch.float32),
    "searchsorted": lambda _, f: torch.searchsorted(torch.tensor([-7.75, 0.0, 300.0]), f),
    "searchsorted from the right": lambda _, f: torch.searchsorted(torch.tensor([-7.75, 0.0]), f, right=True),
    "searchsorted in rows": lambda _, f: torch.searchsorted(f.sort(1).values, f * 0.9, out_int32=True),
    "searchsorted by order": lambda n, f: torch.searchsorted(torch.tensor([5, 0]), n, sorter=torch.tensor([1, 0])),
    "kthvalue": lambda _, f: f.kthvalue(2, 1).values,
    "where kthvalue": lambda n, _: n.kthvalue(3, -1, keepdim=True).indices,
    "median": lambda _, f: torch.cat([f, f[:, 1:2]], 1).median(1).values,
    "cdist": lambda _, f: torch.cdist(f, torch.arange(15.0).view(5, 3)),
    "cdist by sizes": lambda _, f: torch.cdist(f.unsqueeze(1), f.unsqueeze(2).expand(-1, 3, 3), p=1.0),
    "cdist by the largest": lambda _, f: torch.cdist(f, torch.arange(6.0).view(2, 3), p=INFINITE),
    "cdist by cubes": lambda _, f: torch.cdist(f, torch.arange(6.0).view(2, 3), p=3.0),
    "cdist by how many": lambda _, f: torch.cdist(f, torch.tensor([[1.5, 0.0, 0.0]]), p=0.0),
    "either of two": lambda n, f: (n > 2) + (f > 0),
    "any by amax": lambda n, _: (n > 2).amax(1),
    "all by min": lambda n, _: (n > -5).min(1).values,
    "what a forward checks": lambda n, f: (torch._check_tensor_all(n.abs() >= 0), f + 1)[1],
    "whether any is true": lambda n, _: torch._is_any_true(n > 6).expand_as(n),
    "no number among integers": lambda n, _: torch.isnan(n) | ~torch.isfinite(n),
    "less than none of bytes": lambda n, _: -n.abs().to(torch.uint8),
    "sign of zeros": lambda _, f: torch.signbit(f * 0),
    "fmax": lambda n, f: torch.fmax(f / (n != 0) * 0, f),
    "fmin": lambda n, f: torch.fmin(f, f / (n != 0) * 0),
    "stack of several dtypes": lambda n, f: torch.stack([n.int(), f, n], -1),
    "sum of fractions, half of one": lambda n, f: torch.add(f, n, alpha=0.5),
    "7.5 // int64": lambda n, _: 7.5 // (2 * n + 1),
    "7.5 // uint8": lambda n, _: 7.5 // (n.abs() + 1).to(torch.uint8),
    "-7.5 // float16": lambda _, f: -7.5 // f.half(),
    "int64 ** fractions": lambda n, f: n.abs() ** (f / 100),
    "int32 ** 0.5": lambda n, _: n.int().abs() ** torch.tensor([0.5, 2.0, 1.0]),
    "uint8 % int8": lambda n, _: n.abs().to(torch.uint8) % (2 * n + 1).to(torch.int8),
    "int64 << int64": lambda n, _: n << n.abs(),
    "int64 << 63": lambda n, _: n << 63,
    "uint8 << 3": lambda n, _: n.abs().to(torch.uint8) << 7,
    "1 << int64": lambda n, _: 1 << n.abs(),
    "int64 >> int64": lambda n, _: (n * 2**40) >> (n.abs() * 9),
    "int16 >> 1": lambda n, _: n.to(torch.int16) >> 1,
    "int32 >> 31": lambda n, _: n.int() >> torch.tensor([0, 31, 2], dtype=torch.int32),
    "largest of no number": lambda n, f: holed(n, f).amax(1),
    "smallest of all, of no number": lambda n, f: holed(n, f).amin(),
    "largest of rows of no number": lambda n, f: holed(n, f).max(0).values,
    "where the largest is no number": lambda n, f: holed(n, f).max(1).indices,
    "where the smallest is no number": lambda n, f: holed(n, f).argmin(1, keepdim=True),
    "where of all it is": lambda _, f: f.argmax(keepdim=True),
    "where of all no number is": lambda n, f: holed(n, f).argmax(),
    "infinity is the largest": lambda n, f: holed(n, f).nan_to_num(1.0, posinf=INFINITE).max(1).values,
    "sums over a divisor": lambda _, f: nn.functional.avg_pool2d(
        f[:, :1, None, None] * PICTURE, 3, 2, divisor_override=2
    ),
    "padded sums over a divisor": lambda _, f: nn.functional.avg_pool2d(
        f[:, :1, None, None] * PICTURE, (2, 4), (2, 3), (1, 2), ceil_mode=True, divisor_override=7
    ),
    "sums of volumes over a divisor": lambda _, f: nn.functional.avg_pool3d(
        f[:, :1, None, None, None] * PICTURE, 2, 2, ceil_mode=True, divisor_override=3
    ),
    "largest of uneven windows": lambda _, f: nn.functional.adaptive_max_pool2d(f[:, :1, None, None] * PICTURE, (3, 4)),
    "where in uneven windows": lambda _, f: nn.functional.adaptive_max_pool2d(
        (f[:, :1, None, None] * PICTURE / 99).round(), (3, 4), return_indices=True
    )[1],
    "largest of uneven parts": lambda _, f: nn.functional.adaptive_max_pool1d(f, 2),
    "erfcx": lambda _, f: torch.special.erfcx(torch.stack([f / 40, f.abs()])),
    "log_ndtr": lambda _, f: torch.special.log_ndtr(f),
    "erfinv": lambda n, f: torch.erfinv(torch.stack([f / 310, n.sign() * (1 - n.abs() * 1e-6), n.sign()])),
    "lgamma": lambda n, f: torch.lgamma(torch.stack([f, n, n + 0.99, n.abs() * 1e-6])),
    "digamma": lambda n, f: torch.digamma(torch.stack([f, n, n.abs() + 0.45])),
    "inverse": lambda _, f: torch.linalg.inv(TURNED + f.unsqueeze(1) / 1000),
    "inverse of one": lambda _, f: torch.inverse(TURNED + f[0] / 1000),
    "solution": lambda _, f: torch.linalg.solve(TURNED + f.unsqueeze(1) / 1000, f.unsqueeze(2).expand(-1, 3, 4)),
    "solution of a vector": lambda _, f: torch.linalg.solve(TURNED + f.unsqueeze(1) / 1000, f),
    "solution from the right": lambda _, f: torch.linalg.solve(
        TURNED + f.unsqueeze(1) / 1000, f.unsqueeze(1), left=False
    ),
    "log of a sigmoid": lambda n, _: torch.log(torch.sigmoid(8.0 * n)),
    "bits of bytes": lambda n, _: n.abs().to(torch.uint8).unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1,
}


class All(nn.Module):
    """Each function of the same two tensors."""

    def forward(self, counts: Tensor, fractions: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(counts, fractions) for function in WRITTEN.values())


def translated() -> bytes:
    """All of them as one ONNX graph for any number of rows."""
    rows = {0: torch.export.Dim("batch", min=1, max=8)}
    exported = torch.export.export(All(), (COUNTS, FRACTIONS), dynamic_shapes=(rows, rows))
    return ir.to_proto(_translate(exported, opset=18)).SerializeToString()


@pytest.fixture(scope="module")
def answers() -> dict[str, np.ndarray]:
    """What ONNX Runtime makes of each."""
    session = onnxruntime.InferenceSession(run_alone("translate", translated).value)
    found = session.run(None, {"counts": COUNTS.numpy(), "fractions": FRACTIONS.numpy()})
    return dict(zip(WRITTEN, found, strict=True))


@pytest.mark.parametrize("written", WRITTEN)
def test_it_is_what_torch_makes_of_it(answers: dict[str, np.ndarray], written: str) -> None:
    wanted = WRITTEN[written](COUNTS, FRACTIONS).numpy()
    assert answers[written].dtype == wanted.dtype
    np.testing.assert_allclose(answers[written], wanted, rtol=2e-6, atol=1e-7)
