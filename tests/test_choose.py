from deploy.choose import Rules, choose
from deploy.convert.model import Format
from deploy.evidence import Judgement, ParityEvidence, Verdict
from deploy.latency_evidence import LatencyCell, LatencyEvidence, LostContender, Quantile

BOTH: tuple[Format, ...] = ("aoti", "onnx")


def parity(name: Format, verdict: Verdict = Verdict.PASS) -> ParityEvidence:
    return ParityEvidence(
        format=name,
        judgement=Judgement(verdict=verdict, reason="as the test says"),
        reference="float64",
        max_limit=10,
        l2_limit=5,
        cases=("normal x 2",),
        rows=2,
        outputs=(),
        seed=0,
    )


def latency(winner: str | None, *, verdict: Verdict = Verdict.PASS) -> LatencyEvidence:
    def cell(contender: str, median: float) -> LatencyCell:
        p50 = Quantile(value=median, low=median, high=median)
        return LatencyCell(contender=contender, batch=1, n=99, p50=p50, p90=None, p95=None, p99=None)

    return LatencyEvidence(
        judgement=Judgement(verdict=verdict, reason="p99 is what the test says"),
        device="a test",
        threads=1,
        method="stated",
        confidence=0.95,
        cells=(cell("aoti", 3.0), cell("onnx", 2.0), cell("eager", 4.0)),
        ratios=(),
        starts=(),
        winner=winner,
        winner_rule="p50 at batch 1",
    )


def test_the_measured_winner_is_first_and_the_other_stands_in() -> None:
    choice = choose(
        Rules(formats=BOTH),
        failures={},
        parity={"aoti": parity("aoti"), "onnx": parity("onnx")},
        latency=latency("onnx"),
    )
    assert choice.publish == ("onnx", "aoti")
    assert choice.judgement.passed


def test_an_incumbent_named_as_winner_goes_before_a_faster_median() -> None:
    choice = choose(
        Rules(formats=BOTH),
        failures={},
        parity={"aoti": parity("aoti"), "onnx": parity("onnx")},
        latency=latency("aoti"),
    )
    assert choice.publish == ("aoti", "onnx")


def test_with_default_formats_one_that_passes_is_enough_and_the_lost_one_is_named() -> None:
    choice = choose(
        Rules(formats=BOTH),
        failures={"aoti": "g++ was killed"},
        parity={"onnx": parity("onnx")},
        latency=latency("onnx"),
    )
    assert choice.publish == ("onnx",)
    assert choice.lost == {"aoti": "g++ was killed"}


def test_a_format_asked_for_by_name_must_pass() -> None:
    choice = choose(
        Rules(formats=BOTH, by_name=True),
        failures={},
        parity={"aoti": parity("aoti", Verdict.FAIL), "onnx": parity("onnx")},
        latency=latency("onnx"),
    )
    assert choice.publish == ()
    assert choice.judgement.verdict is Verdict.FAIL
    assert "aoti: parity: as the test says" in choice.judgement.reason


def test_nothing_is_published_when_no_format_passes() -> None:
    failing = {name: parity(name, Verdict.FAIL) for name in BOTH}
    choice = choose(Rules(formats=BOTH), failures={}, parity=failing, latency=None)
    assert choice.publish == ()
    assert choice.judgement.verdict is Verdict.FAIL


def test_undecided_parity_is_no_pass() -> None:
    choice = choose(
        Rules(formats=("onnx",)), failures={}, parity={"onnx": parity("onnx", Verdict.UNDECIDED)}, latency=None
    )
    assert choice.publish == ()


def test_a_failed_parity_is_published_only_where_that_was_accepted() -> None:
    rules = Rules(formats=("onnx",), accept_parity_failure=True)
    choice = choose(rules, failures={}, parity={"onnx": parity("onnx", Verdict.FAIL)}, latency=None)
    assert choice.publish == ("onnx",)


def test_an_slo_that_is_not_met_stops_publication_with_its_own_verdict() -> None:
    good = {name: parity(name) for name in BOTH}
    for verdict in (Verdict.FAIL, Verdict.UNDECIDED):
        measured = latency("onnx", verdict=verdict)
        choice = choose(Rules(formats=BOTH, slo=True), failures={}, parity=good, latency=measured)
        assert choice.publish == ()
        assert choice.judgement.verdict is verdict


def test_latency_without_an_slo_stops_nothing() -> None:
    good = {name: parity(name) for name in BOTH}
    choice = choose(Rules(formats=BOTH), failures={}, parity=good, latency=latency(None, verdict=Verdict.UNDECIDED))
    assert choice.publish == ("onnx", "aoti"), "the lower median, as a guess"


def test_a_bound_name_keeps_its_format_and_says_so() -> None:
    good = {name: parity(name) for name in BOTH}
    choice = choose(Rules(formats=BOTH, bound="aoti"), failures={}, parity=good, latency=latency("onnx"))
    assert choice.publish == ("aoti",)
    assert choice.lost == {"onnx": "the name is bound to aoti"}


def test_a_bound_format_that_fails_is_not_replaced_by_the_other() -> None:
    choice = choose(
        Rules(formats=BOTH, bound="aoti"), failures={"aoti": "timed out"}, parity={"onnx": parity("onnx")}, latency=None
    )
    assert choice.publish == ()
    assert "bound to aoti" in choice.judgement.reason
    assert "timed out" in choice.judgement.reason


def test_all_formats_publishes_each_that_passes() -> None:
    good = {name: parity(name) for name in BOTH}
    choice = choose(Rules(formats=BOTH, all_formats=True), failures={}, parity=good, latency=latency("onnx"))
    assert choice.publish == ("onnx", "aoti")
    assert choice.judgement.reason == "onnx, aoti chosen"


def test_what_crashed_in_the_race_is_not_published_even_as_a_stand_in() -> None:
    both: dict[Format, ParityEvidence] = {name: parity(name) for name in BOTH}
    crashed = LostContender(contender="aoti", doing="batch 8", reason="killed by SIGSEGV")
    found = latency("onnx").model_copy(update={"lost": (crashed,)})
    for rules in (Rules(formats=BOTH), Rules(formats=BOTH, all_formats=True)):
        choice = choose(rules, failures={}, parity=both, latency=found)
        assert choice.publish == ("onnx",)
        assert "killed by SIGSEGV" in choice.lost["aoti"]
    assert choose(Rules(formats=BOTH, by_name=True), failures={}, parity=both, latency=found).publish == ()
