"""The weights of a program apart from its graph, and the key under which work on the graph alone is kept.

Owns what makes two programs one piece of work: all that a converter sees but the values of the weights. Called by aoti
and onnx, in a child process.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploy import __version__
from deploy.convert.model import Format, Program
from deploy.files import sha256_bytes, sha256_file
from deploy.targets import Target

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A program's tensors by their names in the module.

    `learnt` are the parameters and buffers that a checkpoint brings, `fixed` the constants that the code itself made.
    `used` are the names, of both, that the graph reads.
    """

    learnt: dict[str, Tensor]
    fixed: dict[str, Tensor]
    used: frozenset[str]

    def find(self, name: str) -> Tensor | None:
        """The tensor of that name, None if there is none."""
        return self.learnt.get(name, self.fixed.get(name))


def weights_of(exported: ExportedProgram) -> Weights:
    """The program's weights; nothing is copied."""
    import torch

    signature = exported.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    read = {names[node.name] for node in exported.graph.nodes if node.name in names and node.users}
    learnt = {name: tensor.detach() for name, tensor in exported.state_dict.items()}
    fixed = {
        name: value.detach()
        for name, value in exported.constants.items()
        if isinstance(value, torch.Tensor) and name not in learnt
    }
    return Weights(learnt=learnt, fixed=fixed, used=frozenset(read))


def work_key(program: Program, weights: Weights, *, format: Format, settings: Mapping[str, str], target: Target) -> str:
    """The hex SHA-256 of all that decides what a converter makes, the values of the learnt weights excepted.

    That is the graph, the spec, how each weight lies in memory and which of them share it, the constants, the settings
    (with the versions of the tools), the target, and this package's own converters.
    """
    import torch

    facts = {
        "graph": program.digest,
        "precision": program.precision,
        "spec": program.spec.model_dump(mode="json"),
        "weights": list(layout({**weights.learnt, **weights.fixed})),
        "fixed": {name: tensor_digest(tensor) for name, tensor in sorted(weights.fixed.items())},
        "used": sorted(weights.used),
        "format": format,
        "settings": dict(sorted(settings.items())),
        "target": target.model_dump(mode="json"),
        "torch": [torch.__version__, torch.version.git_version],
        "machine": [platform.machine(), platform.python_version()],
        "deployctl": [__version__, *_own_sources()],
    }
    return sha256_bytes(json.dumps(facts, sort_keys=True).encode())


def raw_bytes(tensor: Tensor) -> memoryview:
    """All bytes of the memory that a tensor is a view of: without a copy on the CPU, copied from a GPU."""
    import torch

    storage = tensor.untyped_storage().cpu()
    flat = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))
    return flat.numpy().data


def layout(tensors: Mapping[str, Tensor]) -> Iterator[list[object]]:
    """How each tensor lies in memory: the compiled code holds sizes and strides, and equal memory only once."""
    places: dict[int, int] = {}
    for name, tensor in sorted(tensors.items()):
        storage = tensor.untyped_storage()
        place = places.setdefault(storage.data_ptr(), len(places))
        lies = [list(tensor.shape), list(tensor.stride()), tensor.storage_offset(), storage.nbytes()]
        yield [name, str(tensor.dtype), str(tensor.device), *lies, place]


def tensor_digest(tensor: Tensor) -> str:
    """The hex SHA-256 of a tensor's elements in their order."""
    import torch

    array = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _own_sources() -> Iterator[str]:
    """The digests of this room's files: another rule of ours is other work."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        yield f"{path.name} {sha256_file(path)}"
