"""A real network on the GPU: its artifacts, its baseline, and the judgement on whatever answers in their place."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.checkpoint.load import read_checkpoint
from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from deploy.convert.model import FORMATS, Format
from deploy.convert.run import Conversion, ConversionPlan, convert
from deploy.device import fitted
from deploy.evidence import ParityEvidence
from deploy.gpu import GpuStack
from deploy.processes import Worker, run_alone
from deploy.progress import Silent
from deploy.targets import LOCAL_CUDA, find_target
from deploy.validate.baseline import Baseline
from deploy.validate.parity import Answer, judge
from deploy.validate.run import Plan, measure_baseline
from tests.fixtures import save_state_dict, seeded_module

SIZE = 224


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRig:
    """A seeded resnet18 in every format that runs on the GPU here."""

    checkpoint: Checkpoint
    conversion: Conversion
    baseline: Baseline
    logs: Path

    def judge(self, format_: Format, factory: Callable[..., Any], *arguments: object) -> ParityEvidence:
        """What parity says of the answers of `factory(*arguments)`, made in a child on the GPU, to every case."""
        question = self.baseline.question
        pools = {pool.family: pool for pool in question.pools}
        with Worker("answers", log=self.logs / "answers.log") as worker:
            worker.make(factory, *arguments, threads=4, device="cuda")
            answers = [
                Answer(case=case, outputs=worker.call("run", inputs), again=worker.call("run", inputs))
                for case in question.cases
                for inputs in [pools[case.family].take(case.rows)]
            ]
        return judge(self.baseline, iter(answers), format=format_)


def make_gpu_rig(folder: Path, stack: GpuStack) -> GpuRig:
    """The rig, made in children as the command makes it."""
    path = save_state_dict(seeded_module("resnet18", num_classes=1000), folder / "resnet18.pt")
    request = CheckpointRequest(
        path=path, factory="torchvision.models.resnet:resnet18", input_shapes=((3, SIZE, SIZE),)
    )
    checkpoint = run_alone("read", read_checkpoint, request).value
    target = fitted(find_target(LOCAL_CUDA), stack.gpu)
    formats: tuple[Format, ...] = tuple(name for name in FORMATS if name != "onnx" or not stack.onnx)
    plan = ConversionPlan(formats=formats, max_batch=8, target=target, folder=folder / "out", device="cuda")
    conversion = convert(checkpoint, plan, Silent())
    assert not conversion.failures, conversion.failures
    proof = Plan(spec=conversion.program.spec, logs=folder / "logs", threads=4, target=target, device="cuda")
    baseline, _ = measure_baseline(checkpoint, None, proof)
    return GpuRig(checkpoint=checkpoint, conversion=conversion, baseline=baseline, logs=folder / "logs")
