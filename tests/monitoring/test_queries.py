"""Each query gives the number that its series mean, computed by Prometheus over traffic of a known law."""

from pathlib import Path

import pytest
import yaml

from deploy.errors import UsageError
from deploy.monitoring import queries, slo_queries
from deploy.monitoring.burn import duration
from deploy.monitoring.export import latency_buckets, latency_export, measure_for, with_buckets
from deploy.monitoring.objective import Objective
from deploy.monitoring.queries import Subject
from deploy.repository.config import build_config
from deploy.repository.protobuf import parse_config
from tests.monitoring.promtool import promtool
from tests.monitoring.scenario import MODEL, PER_MINUTE, counter, traffic
from tests.repository.samples import PETS

SUBJECT = Subject(model="digits", matching=(("job", "triton"),))
OBJECTIVE = Objective(model="digits", bound_ms=15.0, quantile=0.99)
PETS_CONFIG = build_config(PETS.plan())
HOUR = 60
GOOD = PER_MINUTE * 0.9


def spent(stage: str, microseconds: float) -> dict[str, str]:
    return {f"nv_inference_{stage}_duration_us{{{MODEL}}}": counter((HOUR, GOOD * microseconds))}


# A tenth fails at once; of the others a fifth takes over 15 ms, and none over 30.
SERIES = {
    **traffic((HOUR, 0.2), failing=0.1),
    f'nv_inference_first_response_histogram_ms_bucket{{{MODEL}, le="30"}}': counter((HOUR, GOOD)),
    f'nv_inference_first_response_histogram_ms_bucket{{{MODEL}, le="+Inf"}}': counter((HOUR, GOOD)),
    f"nv_inference_count{{{MODEL}}}": counter((HOUR, GOOD * 2)),
    f"nv_inference_exec_count{{{MODEL}}}": counter((HOUR, GOOD / 3)),
    f"nv_inference_pending_request_count{{{MODEL}}}": "7x60",
    f"nv_inference_pending_request_count{{{MODEL.replace('a:', 'b:')}}}": "5x60",
    **spent("queue", 3000),
    **spent("compute_infer", 1500),
    **spent("request", 5000),
    'up{job="triton", instance="a:8002"}': "1x60",
    'up{job="triton", instance="c:8002"}': "1x60",
    # Another model on another job, which nothing here may count.
    'nv_inference_request_success{model="pets", job="triton"}': counter((HOUR, 1e6)),
    'nv_inference_request_failure{model="digits", job="other", reason="OTHER"}': counter((HOUR, 1e6)),
}

EXPECTED = {
    queries.request_rate(SUBJECT, "5m"): 90.0,
    f"{queries.failure_rate(SUBJECT, '5m')} > 0": 10.0,
    queries.failure_share(SUBJECT, "5m"): 0.1,
    f"{queries.failure_share_by_reason(SUBJECT, '5m')} > 0": 0.1,
    queries.queue_microseconds(SUBJECT, "5m"): 3000.0,
    queries.stage_microseconds(SUBJECT, "request", "5m"): 5000.0,
    queries.queue_compute_ratio(SUBJECT, "5m"): 2.0,
    queries.batch_reached(SUBJECT, "5m"): 6.0,
    queries.pending(SUBJECT): 12.0,
    f"count({queries.not_served(SUBJECT)})": 1.0,
    # 10 % failed and a fifth of 90 % was slow.
    slo_queries.bad_share(OBJECTIVE, SUBJECT, "5m", measure="histograms"): 0.28,
    # 80 % lie below 15 ms and the rest evenly between 15 and 30: the 90 % quantile is in the middle.
    slo_queries.latency_quantile(SUBJECT, 0.9, "5m"): 22.5,
}

IDLE = {name: "0x60" for name in SERIES if not name.startswith("up")}
EXPECTED_IDLE = {
    queries.request_rate(SUBJECT, "5m"): 0.0,
    queries.failure_share(SUBJECT, "5m"): 0.0,
    queries.queue_microseconds(SUBJECT, "5m"): 0.0,
    slo_queries.bad_share(OBJECTIVE, SUBJECT, "5m", measure="histograms"): 0.0,
}


def said(folder: Path, series: dict[str, str], expected: dict[str, float]) -> str:
    """What promtool says; empty where each query has one series with the value that is expected."""
    tests = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f"count(abs(({expression}) - {value}) <= 1e-9 * {max(1.0, value)})",
                "eval_time": "50m",
                "exp_samples": [{"labels": "{}", "value": 1}],
            }
            for expression, value in expected.items()
        ],
    }
    path = folder / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "1m", "tests": [tests]}, width=10_000))
    result = promtool("test", "rules", path)
    return "" if result.returncode == 0 else result.stdout + result.stderr


def test_each_query_gives_what_its_series_mean(tmp_path: Path) -> None:
    assert said(tmp_path, SERIES, EXPECTED) == ""


def test_without_traffic_there_are_numbers_too(tmp_path: Path) -> None:
    assert said(tmp_path, IDLE, EXPECTED_IDLE) == ""


def test_another_number_is_noticed(tmp_path: Path) -> None:
    assert "FAILED" in said(tmp_path, SERIES, {queries.queue_microseconds(SUBJECT, "5m"): 3001.0})


@pytest.mark.parametrize("window", ["5 m", "5", "m", "1w2"])
def test_a_window_that_is_none_is_refused(window: str) -> None:
    with pytest.raises(UsageError, match="no duration"):
        queries.request_rate(SUBJECT, window)


def test_labels_are_escaped_and_their_names_checked() -> None:
    assert Subject(model='a"b\\').select("up") == 'up{model="a\\"b\\\\"}'
    with pytest.raises(UsageError, match="no label"):
        Subject(model="a", matching=(("a-b", "c"),)).select("up")


@pytest.mark.parametrize(
    ("seconds", "text"), [(300, "5m"), (5400, "1h30m"), (259_200, "3d"), (0.25, "250ms"), (1.5, "1s500ms")]
)
def test_durations_are_written_as_promql_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_duration_under_a_millisecond_is_refused() -> None:
    with pytest.raises(UsageError, match="no duration"):
        duration(0.0001)


def test_a_release_of_which_nothing_is_known_is_taken_to_have_no_histogram() -> None:
    assert [measure_for(histograms=known) for known in (True, False, None)] == ["histograms", "summaries", "summaries"]


def test_summaries_are_exported_only_where_an_objective_needs_them() -> None:
    assert latency_export((), measure="summaries") == ("counters", ())
    assert latency_export((), measure="histograms") == ("histograms", ())
    kind, quantiles = latency_export((OBJECTIVE,), measure="summaries")
    assert (kind, quantiles) == ("summaries", (0.05, 0.5, 0.855856, 0.93994, 0.98999))


def test_a_bucket_ends_at_each_bound_of_the_model() -> None:
    config = parse_config(
        with_buckets(PETS_CONFIG, (OBJECTIVE, Objective(model="digits", bound_ms=12.3, quantile=0.9)))
    )
    (control,) = config.model_metrics.metric_control
    assert control.metric_identifier.family == slo_queries.HISTOGRAM
    buckets = list(control.histogram_options.buckets)
    assert buckets == sorted(buckets)
    assert {15.0, 12.3} <= set(buckets)


def test_buckets_are_replaced_and_nothing_else_of_the_config_is() -> None:
    once = with_buckets(PETS_CONFIG, (OBJECTIVE,))
    assert with_buckets(once, (OBJECTIVE,)) == once
    assert with_buckets(PETS_CONFIG, ()) == PETS_CONFIG
    assert latency_buckets((Objective(model="digits", bound_ms=None, quantile=0.9),)) == ()
    message = parse_config(once)
    message.ClearField("model_metrics")
    assert message == parse_config(PETS_CONFIG)


@pytest.mark.parametrize(
    "wrong",
    [{"quantile": 1.0}, {"quantile": 0.0}, {"bound_ms": 0.0}, {"model": ""}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_an_objective_that_means_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Objective(**{"model": "digits", "bound_ms": 15.0, "quantile": 0.99, **wrong})  # type: ignore[arg-type]
