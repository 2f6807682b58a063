"""What is on the page, without a browser: every verdict, nothing hostile, nothing from elsewhere, the same bytes."""

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from deploy.evidence import Verdict
from deploy.report.findings import Findings, read_findings
from deploy.report.html import render_html
from deploy.report.standing import checks, overall
from deploy.repository.attest import attest
from deploy.repository.layout import Version
from tests.report.samples import HOSTILE, Story, bench, latency, parity, rate, slo, tell, tune, unsafe_story
from tests.repository.samples import PETS


class Page(HTMLParser):
    """The text of each heading's section, the elements, and what they refer to."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "srcset"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            assert not name.startswith("on"), f"{tag} has {name}"

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def word_of(findings: Findings) -> str:
    return overall(checks(findings)).word


@pytest.fixture
def version(tmp_path: Path) -> Version:
    return tell(tmp_path / "models")


@pytest.fixture
def attested(version: Version) -> Version:
    """A version with one attestation of each kind."""
    attest(version, "rate", rate())
    attest(version, "slo", slo())
    attest(version, "bench", bench(version))
    attest(version, "tune", tune(version))
    return version


def test_a_version_that_passed_every_check(attested: Version) -> None:
    findings = read_findings(attested)
    page = Page(render_html(findings))
    assert word_of(findings) == "PASS"
    for piece in (
        "PASS every check passed", "Parity with float64", "0.73 of 10", "Latency in ms", "Served parity",
        "Under load", "p99 <= 15 ms", "Rate against p99", "Bench, ", "built by deployctl package pets.pt",
        "torchvision/resnet18",
        "Tuned for p99 <= 15 ms", "of 12 settings tried", "evidence/parity.json", "How a real tritonserver was asked",
    ):  # fmt: skip
        assert piece in page.words
    assert page.tags.count("table") == page.tags.count("caption") == page.tags.count("thead")


def test_equal_findings_give_equal_bytes_and_say_no_other_time(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = render_html(read_findings(version))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert render_html(read_findings(version)) == page
    times = set(re.findall(r"\d{4}-\d\d-\d\dT[\d:]+", page.decode()))
    assert times == {"2026-11-23T10:00:00"}


def test_nothing_is_asked_of_a_network_and_nothing_runs(attested: Version) -> None:
    text = render_html(read_findings(attested))
    page = Page(text)
    assert {"script", "iframe", "object", "img", "form"}.isdisjoint(page.tags)
    assert page.references
    assert all(reference.startswith(("#", "data:,")) for reference in page.references)
    assert not re.search(r"url\((?!#)|@import", text.decode())
    assert b"default-src 'none'" in text


def test_ids_are_unique_and_every_reference_has_one(attested: Version) -> None:
    page = Page(render_html(read_findings(attested)))
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references if reference.startswith("#")} <= set(page.ids)


def test_hostile_names_and_errors_stay_text(tmp_path: Path) -> None:
    broken = parity(outputs=(HOSTILE, "scores"), multiple=20)
    sample = PETS.__class__(classes=("<b>cat</b>", "dog", "eel"), unsafe_accepted=("parity",))
    version = tell(tmp_path / "models", Story(sample=sample, parity=broken))
    attest(version, "slo", slo(Verdict.FAIL, errors={HOSTILE: 7}, model=HOSTILE))
    page = Page(render_html(read_findings(version)))
    assert "script" not in page.tags
    assert page.words.count("<script>alert('x')</script>") >= 4
    assert "<b>cat</b>" in page.words
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", page.text)


def test_a_failure_that_was_accepted_is_unmistakable(tmp_path: Path) -> None:
    findings = read_findings(tell(tmp_path / "models", unsafe_story()))
    page = Page(render_html(findings))
    assert word_of(findings) == "FAIL"
    assert "UNSAFE: published although parity failed." in page.words
    assert "Parity failed, and the version was published all the same." in page.words
    assert page.words.index("UNSAFE") < page.words.index("FAIL failed: parity") < page.words.index("Verdicts")
    assert "it begins at constant bn1.running_var (reproduced): differs by 1e-3" in page.words
    assert "4,213 of 10" in page.words


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: slo(Verdict.FAIL), "FAIL"),
        (lambda: slo(Verdict.UNDECIDED), "UNDECIDED"),
        (lambda: slo(invalid="the client stood still"), "UNDECIDED"),
        (slo, "PASS"),
    ],
)
def test_the_latest_load_run_decides_how_the_page_looks(
    make: Callable[[], object], word: str, version: Version
) -> None:
    attest(version, "slo", slo())
    attest(version, "slo", make())  # type: ignore[arg-type]
    findings = read_findings(version)
    page = render_html(findings).decode()
    assert word_of(findings) == word
    assert f"<title>{word}: pets:1</title>" in page
    assert ('class="banner good"' in page) == (word == "PASS")


def test_a_run_in_which_nothing_came_back_is_shown(version: Version) -> None:
    run = slo(Verdict.FAIL, errors={"connection refused": 4_000})
    nothing = {"queries": 0, "quantiles": (), "distribution": (), "timeline": (), "server": None}
    bounds = tuple(bound.model_copy(update={"n": 0, "over": 0, "low": 0.0, "high": 1.0}) for bound in run.bounds)
    attest(version, "slo", run.model_copy(update={**nothing, "bounds": bounds}))
    page = Page(render_html(read_findings(version))).words
    assert "0 queries at 200/s" in page
    assert "connection refused 4,000" in page
    assert "its counters could not be read" in page


def test_every_rate_that_was_tried_is_in_the_table(version: Version) -> None:
    attest(version, "rate", rate())
    page = Page(render_html(read_findings(version))).words
    assert "900 - ✕ FAIL nothing came back" in page
    assert "260 15.2 ? UNDECIDED too near to tell" in page
    assert "there is no p99, and no point" in page


def test_a_search_shows_its_trials_and_what_confirmed_the_winner(version: Version) -> None:
    attest(version, "tune", tune(version))
    attest(version, "tune", tune(version, reason=HOSTILE))
    text = render_html(read_findings(version))
    page = Page(text)
    assert "2 instances, 2 threads each, batches of 8 within 0 us * 310 13.2" in page.words
    assert "1 instance, 2 threads each, batches of 8 within 0 us = 200 9.4" in page.words
    assert "failed: no room" in page.words
    assert "310 11.6 % 61.0 0 % 13.2" in page.words
    assert len(page.ids) == len(set(page.ids))
    assert page.words.count("p99 of the best setting") == 2


def test_an_architecture_that_is_not_confirmed_is_no_pass(tmp_path: Path) -> None:
    findings = read_findings(tell(tmp_path / "models", Story(architecture=Verdict.UNDECIDED)))
    assert word_of(findings) == "UNDECIDED"
    assert "not proven: architecture (undecided)" in Page(render_html(findings)).words


def test_unknown_damaged_and_foreign_attestations_are_listed_and_named(version: Version) -> None:
    path = attest(version, "slo", slo())
    path.with_name("audit-20261123T101500Z.json").write_text(json.dumps({"trials": 60}))
    path.with_name("review-20261123T101501Z.json").write_text(
        json.dumps({"judgement": {"verdict": "fail", "reason": "other labels"}})
    )
    path.with_name("bench-20261123T101502Z.json").write_text('{"version": ')
    path.with_name("drift-20261123T101503Z.json").write_bytes(b"\xff\xfe")
    foreign = slo().model_copy(update={"version_digest": "f" * 64})
    path.with_name("slo-20261123T101504Z.json").write_text(foreign.to_json())
    search = rate().model_copy(update={"version_digest": "f" * 64, "final": None, "highest": None})
    path.with_name("rate-20261123T101505Z.json").write_text(search.to_json())
    findings = read_findings(version)
    page = Page(render_html(findings)).words
    assert word_of(findings) == "FAIL"
    assert "audit 2026-11-23 10:15:00 UTC - a kind without a verdict audit-20261123T101500Z.json" in page
    assert "review 2026-11-23 10:15:01 UTC ✕ FAIL other labels" in page
    assert "bench 2026-11-23 10:15:02 UTC ! DAMAGED bench-20261123T101502Z.json is not a valid BenchEvidence" in page
    assert "drift 2026-11-23 10:15:03 UTC ! DAMAGED" in page
    assert "slo-20261123T101504Z.json belongs to another version" in page
    assert "rate-20261123T101505Z.json belongs to another version" in page
    assert str(version.repository) not in page


def test_a_changed_file_makes_the_page_a_failure(version: Version) -> None:
    file = version.evidence / "parity.json"
    file.write_text(file.read_text().replace('"rows": 80', '"rows": 800'))
    findings = read_findings(version)
    assert word_of(findings) == "FAIL"
    assert "evidence/parity.json has changed" in Page(render_html(findings)).words


def test_evidence_that_cannot_be_read_is_said_and_the_rest_is_shown(version: Version) -> None:
    (version.evidence / "latency.json").write_text("{")
    page = Page(render_html(read_findings(version))).words
    assert "DAMAGED evidence latency.json is not a valid LatencyEvidence" in page
    assert "0.73 of 10" in page


def test_older_evidence_without_distributions_is_drawn_from_its_percentiles(version: Version) -> None:
    (version.evidence / "latency.json").write_text(latency(distribution=False).to_json())
    assert "Bar: median, with its interval." in Page(render_html(read_findings(version))).words


@pytest.mark.parametrize("multiple", [0.0, math.inf, math.nan, 1e30])
def test_errors_that_no_scale_holds_are_drawn_all_the_same(multiple: float, version: Version) -> None:
    (version.evidence / "parity.json").write_text(parity(multiple=multiple).to_json())
    assert "<svg" in render_html(read_findings(version)).decode()


def test_of_many_outputs_the_worst_are_drawn_and_all_are_in_the_table(version: Version) -> None:
    names = tuple(f"head_{number}" for number in range(40))
    (version.evidence / "parity.json").write_text(parity(outputs=names, multiple=9).to_json())
    text = render_html(read_findings(version)).decode()
    assert "The 12 outputs nearest to their limits" in text
    assert len(set(re.findall(r"head_\d+", text))) == 40
    assert len(re.findall(r">head_\d+ \(onnx\)", text)) == 12
