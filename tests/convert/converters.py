"""Converters that end in the ways real ones do, for the children of `deploy.convert.run`."""

import os
import signal
import time
from pathlib import Path

from deploy.cache import Store
from deploy.convert.model import Artifact, Format, Program
from deploy.errors import UnfinishedError
from deploy.targets import Target

MEETING_SECONDS = 20


def _artifact(folder: Path, **details: str) -> Artifact:
    format_: Format = "aoti" if folder.name == "aoti" else "onnx"
    (folder / "model").write_text("made")
    return Artifact(format=format_, folder=folder, files=("model",), seconds=0, peak_memory=0, details=details)


def well(program: Program, *, target: Target, folder: Path, store: Store | None = None) -> Artifact:
    assert program.path.exists()
    return _artifact(folder)


def segfault(program: Program, *, target: Target, folder: Path, store: Store | None = None) -> Artifact:
    print("about to touch address 0", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("a signal ends this process")


def leave(program: Program, *, target: Target, folder: Path, store: Store | None = None) -> Artifact:
    os._exit(7)


def hang(program: Program, *, target: Target, folder: Path, store: Store | None = None) -> Artifact:
    print("waiting for a lock that nobody gives back", flush=True)
    time.sleep(3600)
    raise AssertionError("it was to be ended")


def dawdle(program: Program, *, target: Target, folder: Path, store: Store | None = None) -> Artifact:
    time.sleep(1)
    return _artifact(folder)


def devour(program: Program, *, target: Target, folder: Path, store: Store | None = None) -> Artifact:
    eaten = []
    while True:
        eaten.append(b"x" * 50_000_000)
        time.sleep(0.02)


def bug(program: Program, *, target: Target, folder: Path, store: Store | None = None) -> Artifact:
    raise KeyError("no lowering for aten.frobnicate")


def refuse(program: Program, *, target: Target, folder: Path, store: Store | None = None) -> Artifact:
    raise UnfinishedError("the operation aten.frobnicate has no translation", fix="use another format")


def meet_as_aoti(program: Program, *, target: Target, folder: Path, store: Store | None = None) -> Artifact:
    return _artifact(folder, met=str(_meet(folder, "aoti", "onnx")))


def meet_as_onnx(program: Program, *, target: Target, folder: Path, store: Store | None = None) -> Artifact:
    return _artifact(folder, met=str(_meet(folder, "onnx", "aoti")))


def meet_nobody(program: Program, *, target: Target, folder: Path, store: Store | None = None) -> Artifact:
    """Gives `met=False` unless the other one is at work at the same time."""
    return _artifact(folder, met=str((folder.parent / "onnx.here").exists()))


def be_there(program: Program, *, target: Target, folder: Path, store: Store | None = None) -> Artifact:
    (folder.parent / "onnx.here").touch()
    return _artifact(folder, first_left=str((folder.parent / "aoti" / "model").exists()))


def _meet(folder: Path, own: str, other: str) -> bool:
    (folder.parent / f"{own}.here").touch()
    deadline = time.monotonic() + MEETING_SECONDS
    while not (folder.parent / f"{other}.here").exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
