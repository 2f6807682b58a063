"""What to change in a forward, by what torch says where it fails or cannot be followed.

Owns the words; raises nothing. Called by explain, and by export for a call that fails before any export.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_DATA_DEPENDENT = "GuardOnDataDependentSymNode"


class Advice(NamedTuple):
    """What is expected of a forward, and what to change in it."""

    expected: str
    fix: str


_ANY_CALL = Advice(
    "a forward that takes a tensor for each --input-shape, a row per sample",
    "check --input-shape and the model's forward, which is given a tensor for each --input-shape",
)
_ANY_EXPORT = Advice(
    "a forward without data-dependent Python control flow",
    "change that code (choose by torch.where or torch.cond; keep numbers in tensors: no item(), int() or bool())",
)
BEYOND = re.compile(r"index -?\d+ is out of bounds|out of range in self")  # what torch says of a place beyond a size
_OWN_LENGTH = (
    r"arange\([^\n]*\.max\(",
    Advice(
        "a mask as long as the inputs, not as the longest row at hand",
        "take its length from an input: torch.arange(x.shape[1], device=x.device) < lengths[:, None]",
    ),
)
# Searched in torch's words and the user's line after them.
_OF_CALLS = (
    _OWN_LENGTH,
    (
        r"one of the following scalar types: Long, Int|tensors used as indices must be",
        Advice(
            "ids as integers", "say so: --input-shape NAME=int64:SIZES, and their range: --values NAME=0..LAST"
        ),
    ),
    (
        r"must be tuple of Tensors, not Tensor|index \d+ is out of bounds for dimension 0 with size [12]\b",
        Advice(
            "a forward whose parameters are tensors, not one list that holds them",
            "wrap it in a module for --factory whose forward takes each by name and builds the list: "
            "def forward(self, left, right): return self.model([left, right])",
        ),
    ),
    (
        r"index out of range in self|index \d+ is out of bounds",
        Advice(
            "ids that the forward's tables have rows for", "give their range: --values NAME=0..LAST, of the last row"
        ),
    ),
    (
        r"(?i)not compiled with CUDA|no NVIDIA driver|Found no NVIDIA",
        Advice(
            "a forward that runs where its weights are", "name no device in it: x.to(self.weight.device), not x.cuda()"
        ),
    ),
    (
        r"on device meta|meta tensor",
        Advice(
            "every part with weights where torch looks for them",
            "keep parts in nn.ModuleList or nn.ModuleDict, tensors in nn.ParameterList, not in a Python list or dict: "
            "what is in those is neither saved nor loaded; then train and save it again",
        ),
    ),
    (
        r"forward: .*\[\s*[\"']|'Tensor' object has no attribute",
        Advice(
            "a forward whose parameters are tensors, not one dict or object that holds them",
            "wrap it in a module for --factory whose forward takes each by name and builds what the other wants: "
            "def forward(self, image, mask): return self.model({'image': image, 'mask': mask})",
        ),
    ),
    (
        r"smaller than kernel size|[Kk]ernel size can't be greater|[Oo]utput size is too small",
        Advice(
            "inputs that are large enough for every pooling and convolution of the network",
            "give larger sizes, those that training had: --input-shape",
        ),
    ),
    (
        r"must have the same dtype|[Ee]xpected scalar type|and bias type \(|should be the same",
        Advice(
            "weights of one dtype, or a forward that converts between those it has",
            "save them in one: {name: tensor.float() for name, tensor in state_dict.items()}, or .half() throughout",
        ),
    ),
    (
        r"block_mask was created for",
        Advice(
            "a block mask of each request's length",
            "make it in the forward, of the length at hand: create_block_mask(mask_mod, None, None, length, length, "
            "BLOCK_SIZE=LONGEST); or leave out --dynamic",
        ),
    ),
)  # fmt: skip
_OF_EXPORTS = (
    _OWN_LENGTH,
    (
        r"takes \d+ positional arguments? but \d+ w",  # what is called with too much, and was not before the export
        Advice(
            "a module of Python code throughout: torch traces no part that is scripted (torch.jit.script, .trace)",
            "give that part by its class in the factory, without torch.jit: its weights have the same names",
        ),
    ),
    (
        r"\.numpy\(\)",
        Advice(
            "a forward that computes with torch alone: NumPy is in no graph", "write that part with torch's operators"
        ),
    ),
    (
        r"UnsupportedOperatorException|fake impl|Meta implementation",
        Advice("operators that torch can trace without data", "compute it with others (dense ones for sparse)"),
    ),
    (
        r"fake tensor in the exported program constant|forward: .*\bgrad\(|no attribute 'constant'",
        Advice(
            "a forward that takes no gradients: a served graph has no backward pass",
            "write out the derivative with torch's operators, or leave that part to training",
        ),
    ),
    (
        r"'size' failed to unpack the object.*FakeTensor",  # a recurrent layer's, of packed sequences
        Advice(
            "sequences as padded tensors: what is packed has sizes that follow from the lengths' values",
            "run the network over the padded tensor and take each row's last real step: "
            "y[torch.arange(len(y)), lengths - 1]; for both directions, or an exact state, one length per model",
        ),
    ),
    (
        r"expected 2 arguments, got \d[\s\S]*flex_attention",  # torch's own, of blocks that are counted per row
        Advice(
            "attention whose blocks torch can count at any length",
            "say the mask by a score_mod, which has no blocks: torch.where(keeps, score, -float('inf')); or leave out "
            "--dynamic",
        ),
    ),
    (
        r"unhashable type: .*SymInt",
        Advice(
            "a forward that keeps nothing by the size of its inputs",
            "make that table once in __init__, for the largest size, as a buffer, and take table[:length]",
        ),
    ),
)  # fmt: skip


def beyond_sizes(name: str) -> Advice:
    """For integers that name places in another input, at the least sizes of that."""
    return Advice(
        f"a forward that takes every value of {name} at every size that --dynamic asks for",
        f"bound them in the forward, such as {name}.clamp(max=x.shape[1]); or end --values {name}=LOW..HIGH at the "
        "least size, and begin the sizes there (--dynamic NAME:AXES=MIN..MAX)",
    )


def advise_call(error: BaseException, place: str) -> Advice:
    """For a forward that fails when it is called; `place` is the user's line as explain has it."""
    return _found(f"{error}{place}", _OF_CALLS) or _ANY_CALL


def advise_export(error: BaseException, place: str) -> Advice:
    """For a forward that runs and cannot be followed."""
    kind = type(error).__name__
    if kind == _DATA_DEPENDENT and ": assert " in place:
        return Advice(
            "a forward without data-dependent Python control flow, checks of values among it",
            "leave that check out, or guard it: if not torch.compiler.is_exporting()",
        )
    return _found(f"{kind}: {error}{place}", _OF_EXPORTS) or _ANY_EXPORT


def _found(text: str, table: Sequence[tuple[str, Advice]]) -> Advice | None:
    return next((advice for pattern, advice in table if re.search(pattern, text)), None)
