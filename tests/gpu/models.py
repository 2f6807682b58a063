"""What the tests on a GPU package, and the models that break a rule on purpose; children build them by name."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from deploy.checkpoint.model import Checkpoint
from deploy.convert.model import Device
from deploy.validate.executables import AotiModel, EagerModel, OnnxModel

TOKENS = (128, 64)  # a row: tokens, features
_HEADS = 4


def _causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


class Attention(nn.Module):
    """One block of causal FlexAttention with heads as wide as the GPU's kernel wants them."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(TOKENS[1], 3 * _HEADS * 32)
        self.norm = nn.LayerNorm(_HEADS * 32)
        self.head = nn.Linear(_HEADS * 32, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        parts = self.query_key_value(tokens).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (_HEADS, 32)).transpose(1, 2) for part in parts)
        mask = create_block_mask(_causal, None, None, TOKENS[0], TOKENS[0], device=str(tokens.device))
        attended = flex_attention(query, key, value, block_mask=mask)
        return self.head(self.norm(attended.transpose(1, 2).flatten(2)).mean(1))  # type: ignore[no-any-return]


class Masked(nn.Module):
    """Attention of heads under a mask that is the same everywhere: one number that stands for all."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(TOKENS[1], 3 * _HEADS * 32)

    def forward(self, tokens: Tensor) -> Tensor:
        parts = self.query_key_value(tokens).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (_HEADS, 32)).transpose(1, 2) for part in parts)
        mask = torch.ones((), dtype=torch.bool, device=tokens.device).expand(tokens.shape[0], 1, TOKENS[0], TOKENS[0])
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).mean((1, 2))


def attention(seed: int = 0) -> Attention:
    """The seeded block, with a head that tells inputs apart."""
    torch.manual_seed(seed)
    module = Attention()
    with torch.no_grad():
        module.head.weight.normal_(std=0.5)
    return module.eval().requires_grad_(False)


def _allow_tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


class RoundingEager(EagerModel):
    """Eager in a process that allows TF32, as torch's convolutions do unless told not to."""

    def __init__(self, checkpoint: Checkpoint, *, threads: int, device: Device) -> None:
        super().__init__(checkpoint, threads=threads, device=device)
        _allow_tf32()


class RoundingArchive(AotiModel):
    """An archive in a process that allows TF32."""

    def __init__(self, path: Path, *, threads: int, device: Device) -> None:
        super().__init__(path, threads=threads, device=device)
        _allow_tf32()


class RoundingGraph(OnnxModel):
    """A graph in a session that allows TF32, which is ONNX Runtime's default."""

    def __init__(self, path: Path, *, threads: int, device: Device) -> None:
        super().__init__(path, threads=threads, device=device)
        self._session.set_providers(["CUDAExecutionProvider"], [{"use_tf32": "1"}])


class Products(EagerModel):
    """A product of large matrices, launched many times faster than it is computed."""

    def __init__(self, size: int) -> None:
        self.device = "cuda"
        self.load_seconds = 0.0
        self._factor = torch.ones(size, size, device="cuda", dtype=torch.float64)

    def _bind(self, inputs: Any) -> Any:
        return lambda: self._factor @ self._factor

    def computing_seconds(self, calls: int) -> float:
        """What the device itself says that each product takes, the median of several."""
        call = self._bind(())
        seconds: list[float] = []
        for _ in range(calls):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            seconds.append(start.elapsed_time(end) / 1000)
        return float(sorted(seconds)[len(seconds) // 2])
