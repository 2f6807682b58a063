"""A load run on stdout: verdict, promises, percentiles, both sides of the wire, at 80 columns and without colour."""

import io

import pytest
from rich.console import Console, RenderableType

from deploy.evidence import Verdict
from deploy.report.slo_terminal import check_table, rate_table, slo_table
from deploy.report.standing import Check
from deploy.report.words import percent, printable, times
from tests.report.samples import HOSTILE, rate, slo


def text(renderable: RenderableType, width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    shown = stream.getvalue()
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= width
    return shown


def row(shown: str, start: str) -> list[str]:
    return next(line.split() for line in shown.splitlines() if line.startswith(start))


def test_a_pass_shows_every_figure() -> None:
    shown = text(slo_table(slo()))
    assert shown.startswith("PASS  pets:1 under load\nevery promise is kept\n")
    assert row(shown, "p99 <= 15 ms")[4:6] == ["1", "4,000"]
    assert row(shown, "p99 <= 15 ms")[-1] == "PASS"
    assert row(shown, "error rate <= 0.001")[-1] == "PASS"
    assert "p99.9" in shown
    for piece in (
        "4,000 queries at 200/s over grpc in 61 s, 400 more to warm up",
        "client kept its schedule: 199.6 of 200 queries/s sent",
        "queue 1.70, input 0.210, inference 3.90, output 0.120 ms per request",
        "4,000 requests in 1,900 executions, 2.10 rows per execution; 0 failed",
        "remark: no version digest was compared",
    ):
        assert piece in " ".join(shown.split())


def test_a_percentile_without_an_interval_has_a_dash() -> None:
    shown = text(slo_table(slo()))
    assert next(line.split() for line in shown.splitlines() if line.strip().startswith("p99.9"))[-1] == "-"


def test_undecided_says_how_many_more_queries_would_decide() -> None:
    shown = " ".join(text(slo_table(slo(Verdict.UNDECIDED))).split())
    assert shown.startswith("UNDECIDED")
    assert "To decide p99 <= 15 ms: 6,200 more, about 31 s." in shown


def test_an_invalid_run_passes_nothing() -> None:
    shown = text(slo_table(slo(invalid="the client could not keep its schedule")))
    assert shown.startswith("INVALID")
    assert "the client could not keep its schedule" in shown
    assert "DID NOT KEEP ITS SCHEDULE" in shown
    assert "PASS" not in shown


@pytest.mark.parametrize(
    ("verdict", "why"), [(Verdict.PASS, "and it passed so"), (Verdict.FAIL, "the server fails too")]
)
def test_a_verdict_that_stands_beside_a_late_client_says_why(verdict: Verdict, why: str) -> None:
    evidence = slo(verdict)
    late = evidence.client.model_copy(update={"kept_schedule": False, "remark": "40 queries were sent late"})
    shown = " ".join(text(slo_table(evidence.model_copy(update={"client": late}))).split())
    assert shown.startswith(verdict.upper())
    assert "DID NOT KEEP" not in shown
    assert "client sent late: 199.6 of 200 queries/s sent" in shown
    assert "the verdict stands all the same: " in shown and why in shown


def test_errors_are_counted_and_cannot_write_control_characters() -> None:
    shown = text(slo_table(slo(Verdict.FAIL, errors={HOSTILE: 7, "deadline exceeded": 31})))
    assert row(shown.replace("     31", "31"), "31") == ["31", "deadline", "exceeded"]
    assert "<script>alert('x')</script>" in shown
    assert "\x00" not in shown


def test_a_server_without_counters_and_a_restarted_one_are_said() -> None:
    evidence = slo()
    assert "its counters could not be read" in text(slo_table(evidence.model_copy(update={"server": None})))
    assert evidence.server is not None
    restarted = evidence.server.model_copy(update={"restarted": True})
    assert "IT WAS RESTARTED" in text(slo_table(evidence.model_copy(update={"server": restarted})))


def test_a_rate_search_shows_every_step_and_the_confirming_run() -> None:
    shown = text(rate_table(rate()))
    assert shown.startswith("PASS  highest rate of pets:1")
    assert "200 queries/s passed; 260 queries/s did not" in shown
    steps = [line.split() for line in shown.splitlines() if line.strip()[:3] in ("100", "400", "260", "180", "900")]
    assert [step[0] for step in steps] == ["100", "400", "260", "180", "900"]
    assert [step[2] for step in steps] == ["8.10", "410", "15.2", "10.4", "-"]
    assert "The run that confirms it" in shown


def test_no_rate_that_passed_is_said() -> None:
    evidence = rate().model_copy(update={"highest": None, "final": None})
    assert "no rate that was tried passed; 260 queries/s did not" in text(rate_table(evidence))


def test_checks_of_a_report_keep_their_reasons_whole() -> None:
    check = Check(name="slo of 2026-11-23 10:15:00 UTC", word="FAIL", reason="word " * 40)
    shown = text(check_table([check]))
    assert shown.startswith("FAIL")
    assert shown.count("word") == 40


@pytest.mark.parametrize(
    ("share", "shown"), [(0.0, "0 %"), (0.01, "1 %"), (0.02625, "2.62 %"), (0.00002, "0.002 %"), (1.0, "100 %")]
)
def test_shares_have_three_digits(share: float, shown: str) -> None:
    assert percent(share) == shown


@pytest.mark.parametrize(
    ("multiple", "shown"), [(0.731, "0.73"), (12.0, "12"), (4213.4, "4,213"), (float("inf"), "inf"), (2e7, "2e+07")]
)
def test_multiples_have_no_exponent_below_a_million(multiple: float, shown: str) -> None:
    assert times(multiple) == shown


def test_text_from_elsewhere_stays_on_one_line_and_within_its_length() -> None:
    assert printable("a\nb\x1b\x00c\t d") == "a b\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}c d"
    assert printable("x" * 50, 10) == "x" * 9 + "…"
