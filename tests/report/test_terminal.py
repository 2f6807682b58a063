"""What a person reads on stdout: every figure is there, at 80 columns and without colour."""

import io
import subprocess
import sys

import pytest
from rich.console import Console, RenderableType

from deploy.evidence import (
    FaultPlace,
    Judgement,
    OutputParity,
    ParityEvidence,
    ParityFailure,
    ServedCheck,
    ServedEvidence,
    Verdict,
)
from deploy.latency_evidence import (
    CONTROL,
    EAGER,
    CarriedLatency,
    ContenderStart,
    LatencyCell,
    LatencyEvidence,
    LatencyRatio,
    Quantile,
)
from deploy.report.terminal import latency_table, parity_table, served_table, show, verdict_lines

PASSED = Judgement(verdict=Verdict.PASS, reason="all is within its limits")
FAILED = Judgement(verdict=Verdict.FAIL, reason="logits [0, 1] is [bold]over[/bold] its limit")


def text(renderable: RenderableType, width: int = 80) -> str:
    """What a log of that width would hold."""
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    shown = stream.getvalue()
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= width
    return shown


def line(shown: str, start: str) -> str:
    return next(row for row in shown.splitlines() if row.startswith(start))


def parity(format_: str, judgement: Judgement, failures: int = 0) -> ParityEvidence:
    output = OutputParity(
        output="logits",
        max_multiple=1.07,
        l2_multiple=0.934,
        max_error=1e-5,
        eager_max_error=1e-5,
        reference_scale=10.0,
        worst=None,
        decisions_compared=240,
        decisions_flipped=3,
    )
    failure = ParityFailure(
        check="max error", output="logits", case="normal x 2", message="0.5 for 0.4", sample=1, index=(1, 3)
    )
    place = FaultPlace(kind="constant", name="bn1.running_var", message="differs by 1e-3", reproduced=True)
    return ParityEvidence(
        format=format_,
        judgement=judgement,
        reference="float64",
        max_limit=10,
        l2_limit=5,
        cases=("normal x 2",),
        rows=320,
        outputs=(output,),
        failures=(failure,) * failures,
        place=place if failures else None,
        seed=0,
    )


def quantile(value: float) -> Quantile:
    return Quantile(value=value, low=value * 0.9, high=value * 1.1)


def cell(contender: str, batch: int, p50: float, p99: float | None = None) -> LatencyCell:
    tail = quantile(p99) if p99 else None
    return LatencyCell(contender=contender, batch=batch, n=10_000, p50=quantile(p50), p90=tail, p95=tail, p99=tail)


def latency(*, winner: str | None = "onnx", cells: bool = True) -> LatencyEvidence:
    names = (EAGER, CONTROL, "onnx")
    return LatencyEvidence(
        judgement=Judgement(verdict=Verdict.PASS, reason="onnx is chosen"),
        device="cpu: Wide Core 9000, 2 of 2 CPUs",
        threads=2,
        versions={"torch": "2.13.0"},
        method="stated",
        confidence=0.95,
        cells=tuple(cell(name, batch, 1234.5, 1500.0 if batch == 1 else None) for batch in (1, 8) for name in names)
        if cells
        else (),
        ratios=(LatencyRatio(contender="onnx", base=EAGER, batch=8, ratio=0.55, low=0.5, high=0.6),),
        starts=(ContenderStart(contender="onnx", load_seconds=1.25, first_call_ms=40.0, peak_memory=350_000_000),),
        winner=winner,
        winner_rule="the lowest p50 at batch 1",
    )


def test_verdicts_come_with_what_they_are_about_and_their_reason_unread_as_markup() -> None:
    shown = text(verdict_lines({"parity aoti": PASSED, "parity onnx": FAILED}))
    assert line(shown, "PASS").split() == ["PASS", "parity", "aoti", *PASSED.reason.split()]
    assert "[bold]over[/bold]" in line(shown, "FAIL")
    assert "[0, 1]" in shown


def test_a_long_reason_is_wrapped_and_not_cut() -> None:
    words = [f"word{number}" for number in range(60)]
    judgement = Judgement(verdict=Verdict.UNDECIDED, reason=" ".join(words))
    assert text(verdict_lines({"latency": judgement})).split()[2:] == words


def test_parity_shows_each_error_beside_its_limit() -> None:
    shown = text(parity_table([parity("aoti", PASSED), parity("onnx", FAILED)]))
    aoti = line(shown, "aoti")
    for piece in ("logits", "1.1 of 10", "0.93 of 5", "320", "3 of 240 flipped", "PASS"):
        assert piece in aoti
    assert "FAIL" in line(shown, "onnx")


def test_parity_names_the_first_failures_how_many_more_and_the_place() -> None:
    shown = " ".join(text(parity_table([parity("onnx", FAILED, failures=7)])).split())
    assert shown.count("max error: 0.5 for 0.4 (output logits, normal x 2, sample 1, index [1, 3])") == 5
    assert "2 more failures" in shown
    assert "it begins at constant bn1.running_var (reproduced): differs by 1e-3" in shown


def test_a_format_that_gave_no_outputs_still_has_its_row() -> None:
    evidence = parity("aoti", FAILED).model_copy(update={"outputs": ()})
    assert "FAIL" in line(text(parity_table([evidence])), "aoti")


def test_latency_shows_every_figure_and_a_dash_where_there_is_none() -> None:
    shown = text(latency_table(latency()))
    first, second = (row.split() for row in shown.splitlines() if row.startswith("onnx") and "10000" in row)
    assert first == ["onnx", "10000", "1234", "[1111,", "1358]", "1500", "1500", "1500", "-"]
    assert second == ["onnx", "10000", "1234", "[1111,", "1358]", "-", "-", "-", "0.55x", "[0.50,", "0.60]"]
    assert shown.index("batch 1") < shown.index("batch 8")
    assert CONTROL in shown
    assert "Wide Core 9000, 2 of 2 CPUs, threads: 2, torch 2.13.0" in shown
    assert "95% intervals" in shown
    assert "winner: onnx (the lowest p50 at batch 1)" in shown
    assert "carried over" not in shown


def test_latency_of_before_is_said_to_be_that() -> None:
    before = CarriedLatency(measured="2026-11-26T12:00:00+00:00", name="flowers", checkpoint="ab" * 32, key="cd" * 32)
    shown = " ".join(text(latency_table(latency().model_copy(update={"carried": before}))).split())
    assert "carried over, not measured in this run: measured 2026-11-26T12:00:00+00:00" in shown
    assert "with the weights of flowers (sha256 abababababab)" in shown


def test_starts_are_shown_apart() -> None:
    shown = text(latency_table(latency()))
    assert shown.splitlines()[-1].split() == ["onnx", "1.25", "40.0", "350", "0"]


def test_no_winner_is_said() -> None:
    assert "winner: none" in text(latency_table(latency(winner=None)))


def test_not_measured_is_one_sentence() -> None:
    evidence = latency(cells=False).model_copy(
        update={"judgement": Judgement(verdict=Verdict.UNDECIDED, reason="not measured: the target runs on cuda")}
    )
    assert text(latency_table(evidence)) == "Latency: not measured: the target runs on cuda\n"


def test_served_parity_says_what_served() -> None:
    check = ServedCheck(name="concurrent", protocol="grpc", requests=64, rows=128, judgement=PASSED)
    evidence = ServedEvidence(
        judgement=PASSED,
        mode="served (adapted)",
        engine="local",
        release="24.10",
        backend="onnxruntime",
        config_difference=("instance_group: left out",),
        checks=(check,),
        executions=20,
        inferences=128,
        ready_seconds=4.25,
    )
    shown = text(served_table([evidence]))
    assert line(shown, "concurrent").split() == ["concurrent", "(grpc)", "64", "128", "PASS"]
    for piece in (
        "onnxruntime, served (adapted)",
        "release 24.10",
        "128 rows in 20 executions",
        "instance_group: left",
    ):
        assert piece in shown


def test_results_go_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    show(verdict_lines({"parity": PASSED}), verdict_lines({"latency": FAILED}))
    printed = capsys.readouterr()
    assert printed.out.count("\n\n") == 1
    assert "parity" in printed.out
    assert printed.err == ""


def test_rich_is_imported_on_use_only() -> None:
    code = "import sys, deploy.report.terminal, deploy.report.stages; print('rich' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"


def test_on_a_narrow_terminal_no_digit_is_cut_off() -> None:
    assert "…" not in text(latency_table(latency()), width=36)
