"""A TorchScript archive that its owner wants served as it is: what it takes, and how it is loaded.

Owns the reading for `--as-is`. An archive holds code of TorchScript's own language beside its weights: loading one is
running it, so it is loaded in children only, and in a server after its digest was compared. Called by as_is.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.checkpoint.inputs import UNKNOWN, UNKNOWN_NOTE
from deploy.checkpoint.load import model_name
from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from deploy.checkpoint.signature import with_values
from deploy.checkpoint.sniff import damaged, is_torchscript
from deploy.errors import UsageError
from deploy.files import sha256_file, size_of
from deploy.spec import BATCH, DTYPES, TensorSpec

if TYPE_CHECKING:
    import torch

TORCHSCRIPT = "torchscript/"
_TENSORS = ("Tensor", "Optional[Tensor]")


def read_script(request: CheckpointRequest) -> Checkpoint:
    """What there is to know of an archive: its inputs as asked for, under the names of its forward's parameters.

    Raises UsageError if the file is no such archive, or its forward cannot take these inputs.
    """
    path = request.path
    if not path.is_file() or not is_torchscript(path):
        raise UsageError(
            f"--as-is was given for {path}, which is no TorchScript archive",
            expected="what torch.jit.save wrote",
            fix="leave --as-is out: other checkpoints are converted, and proven",
        )
    module = load_script(path)
    floating = [tensor for tensor in module.parameters() if tensor.is_floating_point()]
    dtype = str(floating[0].dtype).removeprefix("torch.") if floating else "float32"
    inputs = with_values(_inputs(request, module, dtype=dtype), request.values)
    return Checkpoint(
        path=path.absolute(),
        digest=sha256_file(path),
        format="torchscript",
        name=model_name(path),
        architecture=TORCHSCRIPT + str(getattr(module, "original_name", "module")),
        how="archive",
        options={},
        inputs=inputs,
        dtype=dtype,
        parameters=sum(tensor.numel() for tensor in module.parameters()),
        size=size_of(path),
        classes=None,
        num_classes=None,
        preprocessing=UNKNOWN,
        found_under=None,
        weights=None,
        removed_prefixes=(),
        trust_pickle=False,
        notes=(UNKNOWN_NOTE,),
    )


def load_script(path: Path) -> "torch.jit.ScriptModule":
    """The archive's module on CPU, in the mode it was saved in. Raises UsageError if this torch cannot load it."""
    import torch

    try:
        with warnings.catch_warnings():
            # That TorchScript is on its way out is said where --as-is is explained.
            warnings.simplefilter("ignore")
            module: Any = torch.jit.load(str(path), map_location="cpu")
    except Exception as error:  # the loader raises whatever an archive leads it to
        raise damaged(path, error) from error
    return module  # type: ignore[no-any-return]


def _inputs(request: CheckpointRequest, module: "torch.jit.ScriptModule", *, dtype: str) -> tuple[TensorSpec, ...]:
    """The inputs as asked for, of the weights' `dtype` where none was said. Raises UsageError if they do not fit."""
    forward: Any = module.forward
    takes = list(forward.schema.arguments)[1:]  # the first is the module, whatever its author calls it
    given = takes[: len(request.inputs)]  # what has a default and comes last may be left out
    others = [argument.name for argument in given if str(argument.type) not in _TENSORS]
    needed = [argument.name for argument in takes if not argument.has_default_value()]
    names = [argument.name for argument in takes]
    asked = [
        replace(one, name=one.name or names[place] if place < len(names) else one.name)
        for place, one in enumerate(request.inputs)
    ]
    fits = [one.name for one in asked] == names[: len(asked)] and len(asked) >= len(needed)
    if others or not asked or not fits or any(one.shape is None for one in asked):
        raise UsageError(
            f"--as-is: {len(asked)} input shapes were given, and the archive's forward takes "
            + ", ".join(f"{argument.name}: {argument.type}" for argument in takes),
            expected="tensors only, each with its --input-shape, in the forward's order",
            fix="add " + " ".join(f"--input-shape {name}=SHAPE" for name in needed or names),
        )
    return tuple(_tensor(one.name or "", one.dtype or dtype, one.shape or ()) for one in asked)


def _tensor(name: str, dtype: str, shape: tuple[int, ...]) -> TensorSpec:
    if dtype not in DTYPES:
        raise UsageError(f"--input-shape {name}: there is no dtype {dtype!r}", expected=f"one of {', '.join(DTYPES)}")
    return TensorSpec(name=name, dtype=dtype, shape=(BATCH, *shape))
