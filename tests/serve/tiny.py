"""A linear classifier that can be computed by hand, as ONNX and as an AOTInductor archive, and its baseline."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from deploy.convert.model import Format
from deploy.repository.layout import Version
from deploy.serve.parity import ServedQuestion
from deploy.spec import Spec
from deploy.validate.baseline import Baseline, Question, make_baseline
from deploy.validate.cases import make_cases
from deploy.validate.families import make_pools
from tests.repository.samples import CLASSES, SPEC, Sample, put

PIXELS = 3 * 4 * 4
FLOAT = onnx.TensorProto.FLOAT


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """The seeded classifier `image @ weight + bias` of `SPEC`; another seed is another fine-tune."""

    seed: int = 0

    @property
    def weight(self) -> np.ndarray:
        """Pixels by classes."""
        return np.random.default_rng(self.seed).normal(size=(PIXELS, len(CLASSES))).astype(np.float32)

    @property
    def bias(self) -> np.ndarray:
        """One value per class."""
        return np.arange(len(CLASSES), dtype=np.float32)

    def outputs(self, images: np.ndarray) -> np.ndarray:
        """The scores, computed in the dtype of the images."""
        rows = images.reshape(len(images), -1)
        scores: np.ndarray = rows @ self.weight.astype(rows.dtype) + self.bias.astype(rows.dtype)
        return scores

    def onnx(self, spec: Spec = SPEC) -> bytes:
        """The classifier as an ONNX graph with the names on the wire."""
        first = spec.inputs[0].shape[0]
        nodes = [
            helper.make_node("Flatten", ["INPUT__0"], ["rows"]),
            helper.make_node("Gemm", ["rows", "weight", "bias"], ["OUTPUT__0"]),
        ]
        graph = helper.make_graph(
            nodes,
            "linear",
            [helper.make_tensor_value_info("INPUT__0", FLOAT, [first, 3, 4, 4])],
            [helper.make_tensor_value_info("OUTPUT__0", FLOAT, [first, len(CLASSES)])],
            [numpy_helper.from_array(self.weight, "weight"), numpy_helper.from_array(self.bias, "bias")],
        )
        return onnx_bytes(graph)

    def aoti(self, folder: Path) -> bytes:
        """The classifier as an AOTInductor archive; compiling takes seconds."""
        import torch

        from deploy.convert.aoti import compiler_settings

        # As the packager compiles, and without a test program for each instruction set that this machine may have.
        settings = {**compiler_settings("cpu"), "cpp.simdlen": 256, "cpp.vec_isa_ok": True}
        layer = torch.nn.Linear(PIXELS, len(CLASSES))
        layer.weight.data, layer.bias.data = torch.from_numpy(self.weight.T.copy()), torch.from_numpy(self.bias)
        module = torch.nn.Sequential(torch.nn.Flatten(), layer).eval().requires_grad_(False)
        batch = torch.export.Dim("batch", min=1, max=SPEC.max_batch)
        program = torch.export.export(module, (torch.zeros(2, 3, 4, 4),), dynamic_shapes=({0: batch},))
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(folder / "model.pt2"), inductor_configs=settings
        )
        return Path(path).read_bytes()

    def baseline(self, spec: Spec = SPEC) -> Baseline:
        """The budgets of this classifier: float64 as the reference, float32 as eager."""
        pools = make_pools(spec, None, 0)
        question = Question(spec=spec, pools=pools, cases=make_cases(spec, pools), seed=0)
        images = {pool.family: pool.inputs[0] for pool in pools}
        reference = {family: [self.outputs(rows.astype(np.float64))] for family, rows in images.items()}
        eager = [(case, [self.outputs(images[case.family][list(case.rows)])]) for case in question.cases]
        return make_baseline(question, reference, eager, mixed=())

    def question(self, format: Format = "onnx", classes: tuple[str, ...] = CLASSES) -> ServedQuestion:
        """What a server's answers for this classifier are judged by."""
        return ServedQuestion(baseline=self.baseline(), format=format, classes=classes)


def onnx_bytes(graph: onnx.GraphProto) -> bytes:
    """A model that every supported ONNX Runtime loads."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized


def publish(repository: Path, weights: bytes, sample: Sample) -> Version:
    """A version whose artifact has these bytes."""
    return put(repository, replace(sample, weights=weights)).version


def images(rows: int, seed: int = 1) -> np.ndarray:
    """Seeded inputs of `SPEC`."""
    return np.random.default_rng(seed).normal(size=(rows, 3, 4, 4)).astype(np.float32)
