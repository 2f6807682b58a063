"""The values of this room: the exported program and the compiled artifacts.

Owns no torch, so that the command's own process can hold these values without importing it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.checkpoint.model import Checkpoint
from deploy.spec import Spec

# A version of the format vllm is made by `deploy.llm` and has no compiled file: its engine file is the main one.
Format = Literal["aoti", "onnx", "vllm"]
# Beside them what a repository may hold: models of Triton's python backend, and ensembles of others.
PublishedFormat = Literal["aoti", "onnx", "vllm", "python", "ensemble"]
# Where a run works: what is exported, compiled, proven and measured is on it.
Device = Literal["cpu", "cuda"]
FORMATS: tuple[Format, ...] = ("aoti", "onnx")
# What a program computes in; fp32 is whatever the checkpoint itself has.
Precision = Literal["fp32", "bf16", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8")
ARTIFACT_FILES: dict[Format, str] = {"aoti": "model.pt2", "onnx": "model.onnx", "vllm": "model.json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """An exported program on disk (`torch.export.save`), with its complete spec. `digest` is that of its graph text.

    `notes` say what is served otherwise than the model has it. `flex_attention` counts the uses of that operator, which
    is plain attention on disk: it cannot be saved. `device` is where its weights lie and its artifacts will run;
    `precision` is what it computes in, `scheme` how it came to int8. `checkpoint` is where its weights come from, None
    where the file has them. `reused` is the key of the export of before that it was taken from, None where it was
    exported now.
    """

    path: Path
    spec: Spec
    digest: str
    seconds: float
    peak_memory: int
    notes: tuple[str, ...] = ()
    flex_attention: int = 0
    precision: Precision = "fp32"
    scheme: str = ""
    device: Device = "cpu"
    checkpoint: Checkpoint | None = None
    reused: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One compiled file of one format. `files` are its relative paths in `folder`, the main one first.

    `details` go into the manifest: opset, IR version, compiler, ISA, and so on. `reused` is the key of the work that
    was taken from the cache, None where all was done now; `kept` the key under which the cache has what was done now.
    """

    format: Format
    folder: Path
    files: tuple[str, ...]
    seconds: float
    peak_memory: int
    details: dict[str, str]
    reused: str | None = None
    kept: str | None = None

    @property
    def path(self) -> Path:
        """The main file: `model.pt2` or `model.onnx`."""
        return self.folder / self.files[0]
