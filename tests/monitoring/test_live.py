"""A real Prometheus with our rules, on a real tritonserver: quiet while the objective holds, firing once it does not.

The story is told once and each test looks at one thing in it. The release that runs here has no latency histogram, so
objectives are judged by summaries; the histogram's queries are proven in test_rules. Windows are 1/150 of the real
ones.
"""

import http.client
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import pytest

from deploy.monitoring import queries, slo_queries
from deploy.monitoring.dashboard import DashboardOptions, dashboard
from deploy.monitoring.export import latency_export
from deploy.monitoring.objective import Objective
from deploy.monitoring.queries import Subject
from deploy.monitoring.rules import RuleOptions, rule_groups, rules_file
from deploy.serve.engines import Engine
from deploy.serve.flags import Production, production_flags
from deploy.serve.local import served_view
from deploy.serve.ports import WantedPorts, choose_ports
from tests.monitoring.live import SINGLE, Alert, Prometheus, infer, load, prometheus, slow_classifier
from tests.repository.samples import Sample
from tests.serve.production import started
from tests.serve.tiny import publish

pytestmark = [pytest.mark.engine, pytest.mark.alone]

MODEL = "pets"
OPTIONS = RuleOptions(measure="summaries", scale=1 / 150)
SUBJECT = Subject(model=MODEL, matching=OPTIONS.scope)
FAST: Alert = ("TritonBudgetBurn", "14.4")
CLIENTS = 48
# With so many clients each waits for all others: far over a bound of a dozen times the time of one alone.
BOUND_FACTOR = 12
QUIET_SECONDS, PATIENCE = 5.0, 60.0


@dataclass(slots=True, kw_only=True)
class Story:
    """What was seen in each part: the alerts, and the values of a few queries."""

    alerts: dict[str, set[Alert]] = field(default_factory=dict)
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)

    def note(self, part: str, watcher: Prometheus, alerts: set[Alert]) -> None:
        """Keep what fires, and what the queries say, at this moment."""
        asked = {
            "queue": queries.queue_microseconds(SUBJECT, "2s"),
            "ratio": queries.queue_compute_ratio(SUBJECT, "2s"),
            "request": queries.stage_microseconds(SUBJECT, "request", "2s"),
            "rate": queries.request_rate(SUBJECT, "2s"),
            "failures": queries.failure_share(SUBJECT, "2s"),
            "batch": queries.batch_reached(SUBJECT, "2s"),
            "pending": queries.pending(SUBJECT),
        }
        self.alerts[part] = alerts
        self.values[part] = {name: watcher.value(expression) for name, expression in asked.items()}


@pytest.fixture(scope="module")
def story(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """One server and one Prometheus through calm, overload, a model that goes, and a server that goes."""
    folder = tmp_path_factory.mktemp("monitored")
    version = publish(folder / "models", slow_classifier(), Sample(name=MODEL, spec=SINGLE))
    view = served_view(folder / "view", [version], engine)
    ports = choose_ports("127.0.0.1", WantedPorts())
    placeholder = Objective(model=MODEL, bound_ms=1.0, quantile=0.99)
    latency, quantiles = latency_export((placeholder,), measure=OPTIONS.measure)
    line = production_flags(
        Production(
            repository=str(view),
            control="explicit",
            models=(MODEL,),
            host="127.0.0.1",
            ports=ports,
            latency=latency,
            quantiles=quantiles,
        )
    )
    with started(engine, line, folder, ports=ports) as server:
        objective = Objective(model=MODEL, bound_ms=BOUND_FACTOR * alone_ms(ports.http), quantile=0.99)
        rules = rules_file(rule_groups((MODEL,), (objective,), options=OPTIONS))
        with prometheus(folder, rules, target=f"127.0.0.1:{ports.metrics}") as watcher:
            yield told(watcher, objective, ports.http, stop=server.terminate)


def alone_ms(port: int) -> float:
    """The mean milliseconds of an answer when nobody else asks."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        return fmean(infer(connection, MODEL) for _ in range(15)) * 1000


def told(watcher: Prometheus, objective: Objective, port: int, *, stop: Callable[[], None]) -> Story:
    story = Story()
    watcher.wait_for(f"{queries.up(OPTIONS.scope)} == 1", seconds=PATIENCE)
    with load(port, MODEL, clients=1):
        time.sleep(QUIET_SECONDS)
        story.note("calm", watcher, watcher.firing())
    with load(port, MODEL, clients=CLIENTS):
        story.note("overload", watcher, watcher.until(lambda firing: FAST in firing, seconds=PATIENCE))
        ask_the_dashboard(story, watcher, objective)
    unload(port)
    story.alerts["unloaded"] = watcher.until(lambda firing: ("TritonModelNotServed", "") in firing, seconds=PATIENCE)
    stop()
    gone = {("TritonServerDown", ""), ("TritonNoServer", "")}
    story.alerts["gone"] = watcher.until(lambda firing: gone <= firing, seconds=PATIENCE)
    return story


def ask_the_dashboard(story: Story, watcher: Prometheus, objective: Objective) -> None:
    """How many series each of its queries has under load; a query that does not parse raises."""
    for gpu, options in ((False, OPTIONS), (True, RuleOptions(measure="histograms", scale=OPTIONS.scale))):
        shown = dashboard((MODEL,), (objective,), options=DashboardOptions(rules=options, gpu=gpu))
        for target in (one for panel in shown["panels"] for one in panel.get("targets", ())):
            asked = target["expr"].replace("$model", MODEL).replace("$__rate_interval", "2s")
            story.answers[asked] = len(watcher.values(asked))


def unload(port: int) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", f"/v2/repository/models/{MODEL}/unload")
        assert connection.getresponse().status == 200


def test_nothing_fires_while_the_objective_holds(story: Story) -> None:
    assert story.alerts["calm"] == set()
    assert story.values["calm"]["rate"] > 0


def test_the_burn_alert_fires_under_overload(story: Story) -> None:
    assert FAST in story.alerts["overload"]


def test_the_scaling_metric_tells_calm_from_overload(story: Story) -> None:
    calm, overload = story.values["calm"], story.values["overload"]
    # One client never waits for another; each of many waits for nearly all the others.
    assert calm["ratio"] < 1 < CLIENTS / 4 < overload["ratio"]
    assert calm["queue"] < overload["queue"] / 10
    assert overload["pending"] > CLIENTS / 2 > 1 >= calm["pending"]


def test_what_else_is_counted_agrees_with_what_was_done(story: Story) -> None:
    for values in story.values.values():
        assert values["failures"] == 0
        assert values["batch"] == pytest.approx(1.0)
        assert values["queue"] < values["request"]


def test_a_model_that_was_unloaded_is_missed(story: Story) -> None:
    assert ("TritonModelNotServed", "") in story.alerts["unloaded"]
    assert ("TritonServerDown", "") not in story.alerts["unloaded"]


def test_a_server_that_ended_is_missed(story: Story) -> None:
    assert {("TritonServerDown", ""), ("TritonNoServer", "")} <= story.alerts["gone"]


def test_each_panel_has_something_to_show_under_load(story: Story) -> None:
    absent = ("nv_gpu_", slo_queries.HISTOGRAM)
    empty = [asked for asked, series in story.answers.items() if not series]
    assert [asked for asked in empty if not any(word in asked for word in absent)] == []
    assert any("nv_gpu_" in asked for asked in empty)


def test_prometheus_refuses_a_query_that_does_not_parse(tmp_path: Path) -> None:
    with (
        prometheus(tmp_path, rules_file({"groups": []}), target="127.0.0.1:9") as watcher,
        pytest.raises(AssertionError, match="parse error"),
    ):
        watcher.values("sum by (model (rate(nothing[5m]))")
