"""Lower precisions on a network that really learnt digits: sound ones pass, each way of being broken fails by name."""

from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from deploy.checkpoint.load import build_module, read_checkpoint
from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from deploy.convert.export import export_program, load_program
from deploy.convert.lower import Subject, lowered_converters
from deploy.convert.model import Artifact, Format, Precision, Program
from deploy.convert.precision import Lowering
from deploy.convert.torchao_int8 import quantize_linear
from deploy.errors import DeployError
from deploy.evidence import ParityEvidence, Verdict
from deploy.processes import Worker, prepare, run_alone
from deploy.spec import wire_input
from deploy.targets import LOCAL_CPU, find_target
from deploy.validate.baseline import Baseline, make_baseline
from deploy.validate.executables import EagerModel, ProgramModel
from deploy.validate.families import REAL
from deploy.validate.parity import Answer, judge
from deploy.validate.precision import (
    METRIC_DB,
    SQNR_DB,
    Demand,
    decibels,
    half_baseline,
    noise_baseline,
    prove_in,
    signal,
)
from deploy.validate.run import Plan, Proof, plain_calls, prove
from deploy.validate.samples import Samples, load_samples
from tests.fixtures import save_state_dict
from tests.quantized import DigitMixer, DigitNet, Trained, loud, train


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """A trained network with its program and its proof in fp32."""

    folder: Path
    trained: Trained | None
    checkpoint: Checkpoint
    program: Program
    samples: Samples | None
    plan: Plan
    first: Proof

    def lowered(self, format: Format, precision: Precision, name: str = "", *, calibrated: bool = True) -> Artifact:
        folder = self.folder / (name or f"{format}-{precision}")
        folder.mkdir()
        calibration = self.folder / "rows.npz" if calibrated else None
        subject = Subject(
            checkpoint=self.checkpoint, max_batch=8, lowering=Lowering(precision=precision, calibration=calibration)
        )
        convert = lowered_converters(subject)[format]
        return run_alone(name or "convert", convert, self.program, target=self.plan.target, folder=folder).value

    def prove(self, artifact: Artifact, precision: Precision, *, labelled: bool = True, rows: int = 0) -> Proof:
        samples = self.samples
        if samples is not None and not labelled:
            samples = replace(samples, labels=None)
        held_out = tuple(range(rows)) if rows else ()
        demand = Demand(precision=precision, held_out=held_out, max_drop=0.5)
        return prove_in(demand, self.checkpoint, (artifact,), samples, self.plan, first=self.first)


def learnt(checkpoint: Checkpoint, folder: Path, trained: Trained | None = None) -> Learnt:
    prepare("deploy.convert.preload")
    folder.mkdir(parents=True, exist_ok=True)
    program = run_alone("export", partial(export_program, checkpoint, max_batch=8, folder=folder)).value
    plan = Plan(spec=program.spec, logs=folder / "logs", threads=1, target=find_target(LOCAL_CPU), program=program)
    samples = load_samples(trained.samples, checkpoint.inputs) if trained else None
    if trained:
        rows = load_samples(trained.calibration, checkpoint.inputs).inputs[0]
        np.savez(folder / "rows.npz", allow_pickle=False, **{wire_input(0): rows})
    return Learnt(
        folder=folder,
        trained=trained,
        checkpoint=checkpoint,
        program=program,
        samples=samples,
        plan=plan,
        first=prove(checkpoint, (), samples, plan),
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    folder = tmp_path_factory.mktemp("digits")
    trained = train(folder / "trained", DigitNet, "digit_net")
    assert trained.accuracy > 0.94
    return learnt(read_checkpoint(trained.request), folder / "work", trained)


@pytest.fixture(scope="module")
def int8(digits: Learnt) -> Artifact:
    return digits.lowered("onnx", "int8")


def evidence(proof: Proof) -> ParityEvidence:
    (found,) = proof.evidence.values()
    return found


def test_int8_loses_no_more_than_half_a_point(digits: Learnt, int8: Artifact) -> None:
    found = evidence(digits.prove(int8, "int8"))
    assert found.judgement.passed, found.judgement.reason
    assert found.metric is not None
    assert found.metric.rows == 3291
    assert found.metric.high <= 0.5
    assert found.precision == "int8"
    assert int8.details["int8"].startswith("static QDQ, 128 calibration rows")


def test_without_labels_signal_to_noise_decides(digits: Learnt, int8: Artifact) -> None:
    found = evidence(digits.prove(int8, "int8", labelled=False))
    assert found.metric is None
    assert found.judgement.passed, found.judgement.reason
    assert (found.outputs[0].sqnr_db or 0.0) > SQNR_DB
    assert "dB" in found.judgement.reason


def test_seeded_rows_that_are_all_alike_have_no_signal_that_noise_could_be_held_against(digits: Learnt) -> None:
    seeded = {name: rows for name, rows in digits.first.baseline.rows.items() if name != REAL}
    alike = replace(
        seeded["image"], reference=tuple(rows[:1].repeat(len(rows), axis=0) for rows in seeded["image"].reference)
    )
    first = replace(digits.first.baseline, rows={**seeded, "image": alike})

    assert set(noise_baseline(replace(first, rows=seeded)).rows) == set(seeded)
    assert set(noise_baseline(first).rows) == set(seeded) - {"image"}


def test_too_few_labelled_samples_are_undecided(digits: Learnt, int8: Artifact) -> None:
    found = evidence(digits.prove(int8, "int8", rows=50))
    assert found.judgement.verdict is Verdict.UNDECIDED
    assert "50 samples cannot tell" in found.judgement.reason


@pytest.mark.parametrize("labelled", [True, False], ids=["by accuracy", "by noise"])
def test_doubled_scales_of_one_layer_fail(digits: Learnt, int8: Artifact, labelled: bool, tmp_path: Path) -> None:
    broken = doubled_scales(int8, tmp_path)
    found = evidence(digits.prove(broken, "int8", labelled=labelled))
    assert found.judgement.verdict is Verdict.FAIL
    assert (found.outputs[0].sqnr_db or 0.0) < METRIC_DB
    assert "signal to noise" in found.judgement.reason


def doubled_scales(artifact: Artifact, folder: Path) -> Artifact:
    """A copy whose second convolution reads its weights twice as large."""
    model = onnx.load(artifact.path)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    made_by = {name: node for node in model.graph.node for name in node.output}
    scale = made_by[convolutions[1].input[1]].input[1]
    tensor = next(one for one in model.graph.initializer if one.name == scale)
    tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), scale))
    onnx.save(model, folder / "model.onnx")
    return replace(artifact, folder=folder)


def test_a_metric_that_decided_leaves_a_budget_for_the_server(digits: Learnt, int8: Artifact) -> None:
    proof = digits.prove(int8, "int8")
    found, baseline = evidence(proof), proof.baseline_of("onnx")
    budget = baseline.budgets["output", "real"]
    assert baseline.question.precision == "int8"
    assert set(baseline.rows) == {"real"}
    assert budget.allowed >= 2 * found.outputs[0].max_error


def test_int8_of_convolutions_without_rows_is_refused_with_the_way_out(digits: Learnt) -> None:
    with pytest.raises(DeployError, match="takes its scales from real rows") as refused:
        digits.lowered("onnx", "int8", "uncalibrated", calibrated=False)
    assert "--samples" in str(refused.value)


@pytest.mark.slow
def test_onnx_has_no_bf16_on_a_cpu_and_says_so(digits: Learnt) -> None:
    with pytest.raises(DeployError, match="no bf16 kernel on a CPU"):
        digits.lowered("onnx", "bf16")


@pytest.mark.skipif(find_spec("torchao") is None, reason="needs the extra torchao")
def test_torchao_leaves_a_network_of_convolutions_alone() -> None:
    with pytest.raises(DeployError, match=r"^3% of the weights that compute are in linear layers"):
        quantize_linear(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(16, 1)))


@pytest.mark.slow
def test_fp16_passes_beside_eager_in_fp16(digits: Learnt) -> None:
    found = evidence(digits.prove(digits.lowered("onnx", "fp16"), "fp16"))
    assert found.judgement.passed, found.judgement.reason
    assert found.max_limit == 2.0
    assert "eager's own in fp16" in found.judgement.reason


@pytest.fixture(scope="module")
def bf16(digits: Learnt) -> Baseline:
    return baseline_in(digits, "bf16")


def baseline_in(subject: Learnt, precision: Precision) -> Baseline:
    with Worker("eager", log=subject.folder / "eager.log") as worker:
        worker.make(EagerModel, subject.checkpoint, threads=1, precision=precision)
        return half_baseline(subject.first.baseline, precision, worker)


def judge_program(subject: Learnt, baseline: Baseline, program: Program) -> ParityEvidence:
    question = baseline.question
    pools = {pool.family: pool for pool in question.pools}
    with Worker("program", log=subject.folder / "program.log") as worker:
        worker.make(ProgramModel, program, threads=1)
        outputs = [
            Answer(case=case, outputs=worker.call("run", pools[case.family].take(case.rows))) for case in question.cases
        ]
    return judge(baseline, outputs, format="program")


@pytest.fixture(scope="module")
def bf16_program(digits: Learnt) -> Program:
    folder = digits.folder / "bf16"
    folder.mkdir()
    export = partial(export_program, digits.checkpoint, max_batch=8, folder=folder, precision="bf16")
    made: Program = run_alone("export", export).value
    assert made.spec == digits.program.spec
    assert made.digest != digits.program.digest
    return made


def test_a_bf16_program_passes_twice_eagers_error(digits: Learnt, bf16: Baseline, bf16_program: Program) -> None:
    assert bf16.failures == ()
    found = judge_program(digits, bf16, bf16_program)
    assert found.judgement.passed, found.judgement.reason


def test_weights_of_few_mantissa_bits_miss_bf16(digits: Learnt, bf16: Baseline, bf16_program: Program) -> None:
    found = judge_program(digits, bf16, rounded(bf16_program, digits.folder / "few.pt2", bits=4))
    assert found.judgement.verdict is Verdict.FAIL
    assert "eager's own in bf16" in found.judgement.reason


def test_a_rounding_of_weights_that_eager_happens_to_hold_exactly_is_allowed_for(digits: Learnt) -> None:
    """Of a file in bf16 eager's weights are exact in fp16; who folds a batch norm into them rounds them once."""
    subject = in_bf16(digits)
    with Worker("eager", log=subject.folder / "eager.log") as worker:
        worker.make(EagerModel, subject.checkpoint, threads=1, precision="fp16")
        half = half_baseline(subject.first.baseline, "fp16", worker)
        alone = make_baseline(
            half.question,
            {family: list(rows.reference) for family, rows in subject.first.baseline.rows.items()},
            plain_calls(worker, half.question),
            mixed=[],
        )
    wider = {key: budget.l2_unit / alone.budgets[key].l2_unit for key, budget in half.budgets.items()}
    # A rounding of weights is about as much as the one of activations that eager has.
    assert all(1.0 <= by < 3.0 for by in wider.values()), wider
    assert max(wider.values()) > 1.1
    assert half.question.limits.l2_multiple == half.question.limits.max_multiple == 2.0


def in_bf16(digits: Learnt) -> Learnt:
    """The same network, its file in bf16."""
    folder = digits.folder / "in-bf16"
    folder.mkdir()
    assert digits.trained is not None
    half = build_module(digits.checkpoint).bfloat16().state_dict()
    torch.save(half, folder / "half.pt")
    request = replace(digits.trained.request, path=folder / "half.pt")
    return learnt(read_checkpoint(request), folder / "work")


def rounded(program: Program, path: Path, *, bits: int) -> Program:
    """The program with so many bits of mantissa left in its weights, the hidden one not counted."""
    run_alone("round", partial(save_rounded, program, path, bits=bits))
    return replace(program, path=path, checkpoint=None)


def save_rounded(program: Program, path: Path, *, bits: int) -> None:
    exported = load_program(program)
    for name, tensor in exported.state_dict.items():
        if tensor.is_floating_point():
            mantissa, exponent = torch.frexp(tensor.detach().float())
            scale = 2.0 ** (bits + 1)
            few = torch.ldexp(torch.round(mantissa * scale) / scale, exponent).to(tensor.dtype)
            parameter = isinstance(tensor, nn.Parameter)
            exported.state_dict[name] = nn.Parameter(few, requires_grad=False) if parameter else few
    torch.export.save(exported, path)


def test_activations_beyond_fp16_fail_and_name_bf16(tmp_path: Path) -> None:
    path = save_state_dict(loud(), tmp_path / "checkpoint.pt")
    request = CheckpointRequest(path=path, factory="tests.quantized:loud", input_shapes=((4,),))
    checkpoint = read_checkpoint(request)
    subject = learnt(checkpoint, tmp_path / "work")
    failures = baseline_in(subject, "fp16").failures
    assert "overflow" in failures[0].message
    assert "65,504" in failures[0].message
    found = evidence(subject.prove(subject.lowered("onnx", "fp16", calibrated=False), "fp16"))
    assert found.judgement.verdict is Verdict.FAIL
    assert "overflow" in found.judgement.reason
    assert baseline_in(subject, "bf16").failures == ()


def test_a_wrong_fp32_program_fails_before_any_precision(digits: Learnt, int8: Artifact) -> None:
    plan = replace(digits.plan, program=rounded(digits.program, digits.folder / "wrong.pt2", bits=6))
    proof = prove_in(Demand(precision="int8"), digits.checkpoint, (int8,), digits.samples, plan, first=digits.first)
    assert evidence(proof).judgement.verdict is Verdict.FAIL
    assert "the fp32 program fails parity first" in evidence(proof).judgement.reason


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [(np.array([[1.0, 5.0], [3.0, 5.0]]), np.sqrt(0.5)), (np.array([[1.0, 3.0]]), 1.0), (np.array([[np.nan]]), 0.0)],
    ids=["a constant column carries nothing", "one row", "nothing finite"],
)
def test_the_signal_is_what_varies(rows: np.ndarray, wanted: float) -> None:
    assert signal(rows) == pytest.approx(wanted)


def test_decibels() -> None:
    assert decibels(10.0, 1.0) == pytest.approx(20.0)
    assert decibels(1.0, 0.0) == np.inf
    assert decibels(0.0, 1.0) == -np.inf


@pytest.mark.slow
def test_a_transformer_goes_dynamic_and_passes(tmp_path: Path) -> None:
    trained = train(tmp_path / "trained", DigitMixer, "digit_mixer")
    subject = learnt(read_checkpoint(trained.request), tmp_path / "work", trained)
    artifact = subject.lowered("onnx", "int8", calibrated=False)
    assert artifact.details["int8"].startswith("dynamic, ")
    found = evidence(subject.prove(artifact, "int8"))
    assert found.judgement.passed, found.judgement.reason
