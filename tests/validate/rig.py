"""What the parity tests stand on: a checkpoint on disk, its program and ONNX artifact, and a baseline to judge by."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from deploy.checkpoint.load import read_checkpoint
from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from deploy.convert.aoti import compile_aoti
from deploy.convert.export import export_program
from deploy.convert.model import Artifact, Format, Program
from deploy.convert.onnx import export_onnx
from deploy.evidence import ParityEvidence
from deploy.processes import prepare, run_alone
from deploy.targets import LOCAL_CPU, find_target
from deploy.validate.baseline import Baseline
from deploy.validate.run import Plan, measure_baseline, prove_artifact
from tests.fixtures import save_state_dict
from tests.validate.models import SIZE

MAX_BATCH = 4
_MODELS = "tests.validate.models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """A model whose artifacts can be corrupted and judged."""

    folder: Path
    checkpoint: Checkpoint
    program: Program
    plan: Plan
    baseline: Baseline

    def judge(self, artifact: Artifact, *, program: Program | None = None, seconds: float = 120.0) -> ParityEvidence:
        """The evidence for an artifact; the program is hidden from the search unless given."""
        plan = replace(self.plan, program=program, search_seconds=seconds)
        return prove_artifact(self.checkpoint, artifact, self.baseline, plan)


def load_factory(
    module: nn.Module, factory: str, folder: Path, *, shapes: tuple[tuple[int, ...], ...], source: str = _MODELS
) -> Checkpoint:
    """The checkpoint of a module, saved as a bare state_dict; the factory is one of the Python module `source`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = save_state_dict(module, folder / "checkpoint.pt")
    request = CheckpointRequest(path=path, factory=f"{source}:{factory}", input_shapes=shapes)
    return read_checkpoint(request)


def make_rig(checkpoint: Checkpoint, folder: Path, *, max_batch: int = MAX_BATCH) -> Rig:
    """The checkpoint with its program and its baseline."""
    prepare("deploy.convert.preload")
    program = export_program(checkpoint, max_batch=max_batch, folder=folder)
    plan = Plan(spec=program.spec, logs=folder / "logs", threads=1, target=find_target(LOCAL_CPU), program=program)
    baseline, _ = measure_baseline(checkpoint, None, plan)
    return Rig(folder=folder, checkpoint=checkpoint, program=program, plan=plan, baseline=baseline)


def image_rig(module: nn.Module, factory: str, folder: Path) -> Rig:
    """A rig for a model of the one image input."""
    return make_rig(load_factory(module, factory, folder, shapes=((3, SIZE, SIZE),)), folder)


def convert(program: Program, format: Format, folder: Path) -> Artifact:
    """One artifact, converted in a child, where the exporter's own warnings are not errors."""
    folder.mkdir(parents=True)
    converter = export_onnx if format == "onnx" else compile_aoti
    return run_alone(f"{format} conversion", converter, program, target=find_target(LOCAL_CPU), folder=folder).value
