"""A program on disk without its weights, and made whole again with those of its checkpoint.

Owns what is left out of `program.pt2`, and the proof that what comes back fits. Called by export, in a child process.

Every child that needs the weights maps the checkpoint's own file; a copy of them in the program would be written once,
kept beside the artifacts, and read into the memory of each child.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploy.checkpoint.load import COMPUTED_IN
from deploy.checkpoint.model import Checkpoint
from deploy.checkpoint.tensors import main_dtype
from deploy.errors import UnfinishedError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram


def holds_only(exported: ExportedProgram, module: nn.Module, checkpoint: Checkpoint) -> bool:
    """Whether the program's weights are the module's own tensors as the checkpoint gives them when it is built again.

    They are not where they were converted or quantized after that.
    """
    own = module.state_dict(keep_vars=True)
    return is_as_built(module, checkpoint) and all(
        name in own and _same(tensor, own[name]) for name, tensor in exported.state_dict.items()
    )


def is_as_built(module: nn.Module, checkpoint: Checkpoint) -> bool:
    """Whether the module's tensors are plain and in the dtype in which the checkpoint gives them."""
    import torch

    own = module.state_dict(keep_vars=True)
    given = "float32" if checkpoint.how == "config" else COMPUTED_IN.get(checkpoint.dtype, checkpoint.dtype)
    return all(type(tensor.detach()) is torch.Tensor for tensor in own.values()) and main_dtype(own) == given


def save_hollow(exported: ExportedProgram, path: Path) -> None:
    """Write the program with its graph, constants and example inputs, and an empty tensor for each weight."""
    import torch

    state = exported.state_dict
    whole = dict(state)
    for name, tensor in whole.items():
        state[name] = _empty(tensor)
    try:
        torch.export.save(exported, path)
    finally:
        state.update(whole)


def fill(exported: ExportedProgram, module: nn.Module) -> ExportedProgram:
    """The same program with the module's tensors as its weights; nothing is copied.

    Raises UnfinishedError if one is missing, or lies in memory otherwise than the graph was made for.
    """
    own = module.state_dict(keep_vars=True)
    wanted = _wanted(exported)
    for name in exported.state_dict:
        tensor = own.get(name)
        if tensor is None or (name in wanted and _lies(tensor) != _lies(wanted[name])):
            raise UnfinishedError(
                f"the program's weight {name!r} is {'absent' if tensor is None else _lies(tensor)} in the module "
                "that was built again",
                expected=f"{_lies(wanted[name])}, as when it was exported" if name in wanted else "the same names",
                fix="let the factory give the same module whenever it is called",
            )
        exported.state_dict[name] = tensor
    return exported


def _wanted(exported: ExportedProgram) -> dict[str, Tensor]:
    """The weights that the graph takes, as the exporter saw them."""
    signature = exported.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return {names[node.name]: node.meta["val"] for node in exported.graph.nodes if node.name in names}


def _lies(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} with strides {list(tensor.stride())}"


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.data_ptr() == other.data_ptr() and _lies(one) == _lies(other))


def _empty(tensor: Tensor) -> Tensor:
    import torch

    nothing = torch.empty(0, dtype=tensor.dtype)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(nothing, requires_grad=tensor.requires_grad)
    return nothing
