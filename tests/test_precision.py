"""`package --precision` from file to served version, and what is refused before any work."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.convert.model import Precision
from deploy.convert.run import Conversion
from deploy.errors import ExitCode, UsageError
from deploy.evidence import ParityEvidence
from deploy.latency_evidence import LatencyRatio, PrecisionEvidence
from deploy.package import package, plan_package
from deploy.precisions import Attempt, best_of, split
from deploy.repository.find import read_manifest
from deploy.request import PackageRequest, Resources
from deploy.serve.engines import Engine
from deploy.serve.snippet import ClientExample
from deploy.targets import find_target
from deploy.validate.run import Proof
from deploy.validate.samples import Samples
from deploy.validate.store import load_baseline
from deploy.verify import verify
from tests.packaging import make_request
from tests.quantized import DigitNet, Trained, train


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("digits"), DigitNet, "digit_net")


def asked(digits: Trained, repository: Path) -> PackageRequest:
    return PackageRequest(
        checkpoint=digits.request,
        repository=repository,
        target=find_target("local-cpu"),
        name="digits",
        samples=digits.samples,
        calibration=digits.calibration,
        formats=("onnx",),
        by_name=True,
        precision="int8",
        resources=Resources(seconds_per_cell=0.05, threads=1),
    )


@pytest.mark.engine
def test_int8_is_served_and_verified_by_its_own_budget(digits: Trained, engine: Engine, tmp_path: Path) -> None:
    request = asked(digits, tmp_path / "repository")
    result = package(request)
    assert result.exit_code is ExitCode.OK, result.outcome
    version = result.outcome.published[0].version
    manifest = read_manifest(version)
    assert manifest.artifact["precision"] == "int8"
    assert manifest.artifact["int8"].startswith("static QDQ, 128 calibration rows")
    assert [tensor.dtype for tensor in (*manifest.spec.inputs, *manifest.spec.outputs)] == ["float32", "float32"]
    assert load_baseline(version.evidence, manifest.spec).question.precision == "int8"
    assert ParityEvidence.read(version.evidence / "parity.json").metric is not None
    assert ClientExample.of(version).about == "digits:1 (int8)"
    again = verify(request.repository, "digits:1", engine=engine)
    assert again.exit_code is ExitCode.OK, again.versions[0].checks


@pytest.mark.slow
def test_auto_tries_every_precision_and_names_what_it_took(digits: Trained, tmp_path: Path) -> None:
    request = replace(
        asked(digits, tmp_path / "repository"), precision="auto", formats=("aoti", "onnx"), by_name=False,
        serve_check=False,
    )  # fmt: skip
    result = package(request)
    assert result.exit_code is ExitCode.OK
    version = result.outcome.published[0].version
    kept = PrecisionEvidence.read(version.evidence / "precision.json")
    assert kept == result.precision
    tried = {(one.format, one.precision): one for one in kept.trials}
    assert {name for _, name in tried} | kept.left_out.keys() == {"fp32", "bf16", "fp16", "int8"}
    assert tried["onnx", "int8"].judgement.passed
    assert tried["aoti", "int8"].scheme.startswith("dynamic: 1 linear layers")
    assert "no bf16 kernel on a CPU: Type" in tried["onnx", "bf16"].judgement.reason
    assert str(tmp_path) not in kept.to_json()
    manifest = read_manifest(version)
    assert manifest.artifact["precision"] == kept.chosen[manifest.format]


@pytest.mark.parametrize(
    "changed", [{"metric": "accuracy"}, {"max_drop": 1.0}, {"calibration": Path("rows.npz")}], ids=str
)
def test_what_only_int8_heeds_is_refused_beside_others(changed: dict[str, object], tmp_path: Path) -> None:
    request = replace(make_request(tmp_path), serve_check=False, precision="bf16", **changed)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="was given with --precision bf16"):
        plan_package(request)


def test_an_ensemble_is_fp32_only(tmp_path: Path) -> None:
    request = replace(make_request(tmp_path), serve_check=False, precision="bf16", ensemble="image")
    with pytest.raises(UsageError, match="--ensemble was given with --precision bf16"):
        plan_package(request)


def test_calibration_rows_are_read_before_any_work(tmp_path: Path) -> None:
    request = replace(make_request(tmp_path), serve_check=False, precision="int8", calibration=tmp_path / "none.npz")
    with pytest.raises(UsageError, match=r"there is no samples file .*none\.npz"):
        plan_package(request)


def test_a_metric_without_labels_is_refused(tmp_path: Path) -> None:
    request = replace(make_request(tmp_path), serve_check=False, precision="int8", max_drop=1.0, samples=None)
    with pytest.raises(UsageError, match="--max-drop was given without labelled samples"):
        plan_package(request)


@pytest.mark.parametrize("rows", [1, 2, 12, 300, 5000])
def test_no_row_is_both_for_calibration_and_for_judging(rows: int) -> None:
    samples = Samples(path=Path("x.npz"), inputs=(np.zeros((rows, 2)),), digest="")
    found = split(samples, calibrated_elsewhere=False)
    assert not set(found.calibration) & set(found.held_out)
    assert sorted((*found.calibration, *found.held_out)) == list(range(rows))
    assert len(found.calibration) <= min(128, rows // 2)
    shown = {int(row) for row in np.linspace(0, rows - 1, min(8, rows)).round()}
    assert not set(found.calibration) & shown


def test_rows_of_another_file_leave_all_samples_for_judging() -> None:
    samples = Samples(path=Path("x.npz"), inputs=(np.zeros((30, 2)),), digest="")
    assert split(samples, calibrated_elsewhere=True).held_out == tuple(range(30))


NOTHING: tuple[Conversion, Proof] = (None, None)  # type: ignore[assignment]


def field(*precisions: Precision) -> list[Attempt]:
    conversion, proof = NOTHING
    return [Attempt(precision=one, conversion=conversion, proof=proof) for one in precisions]


def ratio(contender: str, value: float, *, spread: float = 0.02) -> LatencyRatio:
    return LatencyRatio(contender=contender, base="fp32", batch=1, ratio=value, low=value - spread, high=value + spread)


CONTROL = ratio("fp32 (A/A)", 1.0)


def test_the_fastest_is_taken() -> None:
    best = best_of(field("fp32", "bf16", "int8"), [CONTROL, ratio("bf16", 0.8), ratio("int8", 0.6)])
    assert best is not None
    assert best.precision == "int8"


@pytest.mark.parametrize("value", [0.98, 1.3], ids=["within the noise", "slower"])
def test_fp32_stays_where_no_other_is_shown_to_be_faster(value: float) -> None:
    best = best_of(field("fp32", "bf16"), [CONTROL, ratio("bf16", value)])
    assert best is not None
    assert best.precision == "fp32"


def test_the_only_one_that_passed_is_taken_and_none_where_none_did() -> None:
    best = best_of(field("bf16"), [])
    assert best is not None
    assert best.precision == "bf16"
    assert best_of([], []) is None
