"""The export of before: a program without weights, kept for the next checkpoint of the same architecture.

Owns the entry's files and what is read of them without the graph. Called by export, aoti and onnx, in child processes.
`fingerprint` says what the key holds; a program that failed its proof is dropped and exported again (`deploy.package`).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.cache import Store
from deploy.checkpoint.pickles import load_plain
from deploy.convert.model import Program
from deploy.convert.reuse import Weights, weights_of
from deploy.errors import UsageError
from deploy.files import link_or_copy
from deploy.records import Record
from deploy.spec import Spec

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

PROGRAM_FILE = "program.pt2"
_FACTS = "facts.json"
_FIXED = "fixed.pt"
_FOLDER = "kept-program"

_built_here: dict[Path, nn.Module] = {}


class Facts(Record):
    """What is known of a kept program without its graph: the `Program`'s own, and the `used` of its `Weights`."""

    spec: Spec
    digest: str
    used: tuple[str, ...]


def keep_program(store: Store, key: str, program: Program, exported: ExportedProgram) -> None:
    """Keep a program that lies on disk without weights."""
    import torch

    weights = weights_of(exported)
    with tempfile.TemporaryDirectory(prefix="keep-", dir=program.path.parent) as work:
        entry = Path(work) / "entry"
        link_or_copy(program.path, entry / PROGRAM_FILE)
        Facts(spec=program.spec, digest=program.digest, used=tuple(sorted(weights.used))).write(entry / _FACTS)
        torch.save(weights.fixed, entry / _FIXED)
        store.keep(key, entry, about=f"program of {len(weights.learnt)} weights")


def take_program(store: Store, key: str, folder: Path, module: nn.Module) -> Program | None:
    """The program kept under `key`, its files in `folder`; None if there is none. `module` has the weights it gets."""
    into = folder / _FOLDER
    if not store.take(key, into):
        return None
    try:
        facts = Facts.read(into / _FACTS)
    except UsageError:
        shutil.rmtree(into)
        store.drop(key)
        return None
    path = into / PROGRAM_FILE
    _built_here.clear()
    _built_here[path] = module
    return Program(path=path, spec=facts.spec, digest=facts.digest, seconds=0.0, peak_memory=0, reused=key)


def weights_without_graph(program: Program) -> Weights | None:
    """The program's weights, without reading its graph; None where only the graph tells which they are."""
    if program.reused is None:
        return None
    folder = program.path.parent
    fixed = load_plain(folder / _FIXED)
    assert isinstance(fixed, dict)
    learnt = {name: tensor.detach() for name, tensor in module_of(program).state_dict(keep_vars=True).items()}
    return Weights(learnt=learnt, fixed=fixed, used=frozenset(Facts.read(folder / _FACTS).used))


def module_of(program: Program) -> nn.Module:
    """The module whose weights a program without its own gets: the very one in the process that exported it."""
    from deploy.checkpoint.load import build_module

    assert program.checkpoint is not None
    if program.path not in _built_here:
        _built_here.clear()
        _built_here[program.path] = build_module(program.checkpoint).to(program.device)
    return _built_here[program.path]
