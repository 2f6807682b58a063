"""Prometheus takes the rules, and each alert fires when its promise is broken and not before, by promtool."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from deploy.errors import UsageError
from deploy.monitoring.burn import BURNS
from deploy.monitoring.objective import Objective
from deploy.monitoring.rules import AlertName, RuleOptions, rule_groups, rules_file
from tests.monitoring.promtool import promtool
from tests.monitoring.scenario import MODEL, PER_MINUTE, Scenario, counter, traffic

OBJECTIVE = Objective(model="digits", bound_ms=15.0, quantile=0.99)
ANSWERED = Objective(model="digits", bound_ms=None, quantile=0.999)
SUMMARIES = RuleOptions(measure="summaries")

HOUR, STEPS = 60, 144
UP = 'up{job="triton", instance="a:8002"}'
FAST, SLOW, TICKET = (f'alertname="TritonBudgetBurn", burn="{burn}", slo="p99-15ms"' for burn in ("14.4", "6", "1"))
ANY = 'alertname=~".+"'

BEFORE = 70
"""Good minutes that come first: more than the longest window of the alarm that is looked at, where it is an hour."""

HISTOGRAM_SCENARIOS = [
    Scenario(
        name="half the budget is used: nothing fires",
        series={UP: "1x500", **traffic((5 * HOUR, 0.005))},
        firing={ANY: {HOUR: 0, 5 * HOUR - 1: 0}},
    ),
    Scenario(
        name="all slow after a good hour: 14.4 % of an hour is reached after 8.6 minutes, and held for 2",
        series={UP: "1x500", **traffic((BEFORE, 0.0), (HOUR, 1.0))},
        firing={FAST: {BEFORE: 0, BEFORE + 8: 0, BEFORE + 13: 1}},
    ),
    Scenario(
        name="a fifth slow: an hour's 14.4 % after 43 minutes",
        series={UP: "1x500", **traffic((BEFORE, 0.0), (2 * HOUR, 0.2))},
        firing={FAST: {BEFORE + 42: 0, BEFORE + 48: 1}},
    ),
    Scenario(
        name="8 % slow: six hours' 6 % after four and a half, the faster alarm never",
        series={UP: "1x5000", **traffic((7 * HOUR, 0.0), (6 * HOUR, 0.08))},
        firing={SLOW: {7 * HOUR + 265: 0, 7 * HOUR + 300: 1}, FAST: {7 * HOUR + 300: 0}},
    ),
    Scenario(
        name="it is over: the short window ends the alarm though the hour is still bad",
        series={UP: "1x500", **traffic((BEFORE, 0.0), (30, 1.0), (HOUR, 0.0))},
        firing={FAST: {BEFORE + 29: 1, BEFORE + 37: 0}},
    ),
    Scenario(
        name="Prometheus 3 writes the bucket's end with a fraction",
        series={UP: "1x5000", **traffic((BEFORE, 0.0), (HOUR, 1.0), bucket="15.0")},
        firing={FAST: {BEFORE + 13: 1}, 'alertname="TritonObjectiveUnmeasured"': {BEFORE: 0}},
    ),
    Scenario(
        name="no bucket ends at the bound: nothing could fire, and that is said",
        series={UP: "1x5000", **traffic((2 * HOUR, 1.0), bucket="100")},
        firing={FAST: {HOUR: 0}, 'alertname="TritonObjectiveUnmeasured", slo="p99-15ms"': {9: 0, 12: 1}},
    ),
    Scenario(
        name="a server that does not serve the model",
        series={UP: "1x60"},
        firing={'alertname="TritonModelNotServed", instance="a:8002"': {1: 0, 3: 1}, ANY: {3: 1}},
    ),
    Scenario(
        name="a server that is gone, and one that is left",
        series={
            UP: "1x9 0x50",
            'up{job="triton", instance="b:8002"}': "1x60",
            f"nv_inference_request_success{{{MODEL.replace('a:', 'b:')}}}": counter((60, PER_MINUTE)),
        },
        firing={'alertname="TritonServerDown", instance="a:8002"': {9: 0, 13: 1}, 'severity="page"': {13: 0}},
    ),
    Scenario(
        name="no server at all, and none that Prometheus knows of",
        series={'up{job="another"}': "1x60"},
        firing={'alertname="TritonNoServer"': {0: 0, 2: 1}},
    ),
    Scenario(
        name="requests wait for more than half of their bound",
        series={
            UP: "1x500",
            **traffic((2 * HOUR, 0.0)),
            f"nv_inference_queue_duration_us{{{MODEL}}}": counter((HOUR, PER_MINUTE * 7000), (HOUR, PER_MINUTE * 9000)),
        },
        firing={'alertname="TritonQueueSaturated"': {HOUR: 0, HOUR + 8: 0, HOUR + 20: 1}},
    ),
]


FAILURES = [
    Scenario(
        name="failures are fast and break the promise all the same",
        series={UP: "1x5000", **traffic((3 * HOUR, 0.0), failing=0.2)},
        firing={
            FAST: {HOUR: 1},
            'alertname="TritonBudgetBurn", slo="answered-99.9", burn="14.4"': {HOUR: 1},
            'alertname="TritonRequestsFailing", reason="BACKEND"': {HOUR: 1},
            'alertname="TritonRequestsFailing"': {2: 0, HOUR: 1},
        },
    ),
]

# Three days in steps of ten minutes: the windows of five and thirty minutes do not see these.
LONG_SCENARIOS = [
    Scenario(
        name="half the budget for four days: no ticket",
        series={UP: "1x600", **traffic((4 * STEPS, 0.005))},
        firing={ANY: {STEPS: 0, 4 * STEPS - 1: 0}},
        step=10,
    ),
    Scenario(
        name="1.5 % slow: a ticket once three days' 1 % is reached, after two, and held for an hour",
        series={UP: "1x900", **traffic((3 * STEPS + 6, 0.0), (3 * STEPS, 0.015))},
        firing={TICKET: {5 * STEPS - 1: 0, 5 * STEPS + 20: 1}, ANY: {5 * STEPS + 20: 1}},
        step=10,
    ),
]


def quantiles(*segments: tuple[int, float]) -> dict[str, str]:
    """Summaries of segments of so many minutes in which a share of requests takes 20 ms, the others 10."""
    found = {}
    for quantile in (0.05, 0.5, 0.855856, 0.93994, 0.98999):
        values = (f"{20_000 if slow > 1 - quantile else 10_000}x{minutes - 1}" for minutes, slow in segments)
        found[f'nv_inference_request_summary_us{{{MODEL}, quantile="{quantile:g}"}}'] = " ".join(values)
    counts = traffic(*((minutes, 0.0) for minutes, _ in segments))
    return found | {name: values for name, values in counts.items() if "histogram" not in name}


SUMMARY_SCENARIOS = [
    Scenario(
        name="half the budget is used: no quantile is over the bound",
        series={UP: "1x500", **quantiles((5 * HOUR, 0.005))},
        firing={ANY: {HOUR: 0, 5 * HOUR - 1: 0}},
    ),
    Scenario(
        name="all slow: 95 % of the hour's moments prove it after 9.1 minutes",
        series={UP: "1x5000", **quantiles((BEFORE, 0.0), (HOUR, 1.0))},
        firing={FAST: {BEFORE + 8: 0, BEFORE + 14: 1}},
    ),
    Scenario(
        name="8 % slow: only 6 % are proven, which takes the six hours whole",
        series={UP: "1x5000", **quantiles((7 * HOUR, 0.0), (7 * HOUR, 0.08))},
        firing={SLOW: {7 * HOUR + 350: 0, 7 * HOUR + 380: 1}, FAST: {7 * HOUR + 380: 0}},
    ),
    Scenario(
        name="summaries are not exported: nothing could fire, and that is said",
        series={UP: "1x5000", **{k: v for k, v in quantiles((HOUR, 1.0)).items() if "summary" not in k}},
        firing={FAST: {HOUR - 1: 0}, 'alertname="TritonObjectiveUnmeasured"': {12: 1}},
    ),
]


def verdict(folder: Path, groups: dict[str, Any], scenarios: Sequence[Scenario]) -> str:
    """What promtool says of the scenarios under these rules; empty where all is as expected."""
    (folder / "rules.yaml").write_text(rules_file(groups))
    document = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": f"{scenarios[0].step}m",
        "tests": [scenario.test() for scenario in scenarios],
    }
    (folder / "tests.yaml").write_text(yaml.safe_dump(document, sort_keys=False, width=10_000))
    result = promtool("test", "rules", folder / "tests.yaml")
    return "" if result.returncode == 0 else result.stdout + result.stderr


@pytest.mark.parametrize("options", [RuleOptions(), SUMMARIES, replace(SUMMARIES, scale=1 / 300)])
def test_prometheus_accepts_the_rules_and_finds_no_duplicate(options: RuleOptions, tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(rules_file(rule_groups(("digits", "pets"), (OBJECTIVE, ANSWERED), options=options)))
    result = promtool("check", "rules", path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_promtool_refuses_a_rule_that_does_not_parse(tmp_path: Path) -> None:
    groups = rule_groups(("digits",), (OBJECTIVE,))
    groups["groups"][1]["rules"][0]["expr"] += ")"
    path = tmp_path / "rules.yaml"
    path.write_text(rules_file(groups))
    assert promtool("check", "rules", path).returncode != 0


def test_alerts_fire_when_a_promise_is_broken_and_not_before(tmp_path: Path) -> None:
    groups = rule_groups(("digits",), (OBJECTIVE,))
    assert verdict(tmp_path, groups, HISTOGRAM_SCENARIOS) == ""
    assert verdict(tmp_path, groups, LONG_SCENARIOS) == ""


def test_failures_break_each_promise(tmp_path: Path) -> None:
    assert verdict(tmp_path, rule_groups(("digits",), (OBJECTIVE, ANSWERED)), FAILURES) == ""


def test_summaries_prove_less_and_never_more(tmp_path: Path) -> None:
    assert verdict(tmp_path, rule_groups(("digits",), (OBJECTIVE,), options=SUMMARIES), SUMMARY_SCENARIOS) == ""


@pytest.mark.parametrize("factor", [13.0, 16.0])
def test_the_scenarios_notice_another_factor(factor: float, tmp_path: Path) -> None:
    wrong = (replace(BURNS[0], factor=factor), *BURNS[1:])
    groups = rule_groups(("digits",), (OBJECTIVE, ANSWERED), options=RuleOptions(burns=wrong))
    fifth = replace(
        HISTOGRAM_SCENARIOS[2], firing={FAST.replace("14.4", f"{factor:g}"): {BEFORE + 42: 0, BEFORE + 48: 1}}
    )
    assert "FAILED" in verdict(tmp_path, groups, [fifth])


def test_an_alarm_that_never_could_fire_is_not_written() -> None:
    median = Objective(model="digits", bound_ms=15.0, quantile=0.5)
    rules = rule_groups(("digits",), (median,))["groups"][1]["rules"]
    burns = [rule["labels"]["burn"] for rule in rules if rule.get("alert") == "TritonBudgetBurn"]
    assert burns == ["1"]


def test_an_objective_no_alarm_can_watch_is_refused() -> None:
    with pytest.raises(UsageError, match="no alarm could watch"):
        rule_groups(("digits",), (OBJECTIVE,), options=RuleOptions(burns=(replace(BURNS[0], factor=200.0),)))


def test_an_objective_for_another_model_is_refused() -> None:
    with pytest.raises(UsageError, match="objectives for digits"):
        rule_groups(("pets",), (OBJECTIVE,))


def test_rules_without_a_scope_are_refused() -> None:
    with pytest.raises(UsageError, match="no scope"):
        RuleOptions(scope=())


def test_each_alert_there_is_has_a_rule() -> None:
    groups = rule_groups(("digits",), (OBJECTIVE,))["groups"]
    written = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    assert written == set(get_args(AlertName))
