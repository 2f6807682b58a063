"""PromQL over what a tritonserver exports, one function per question, each for one model.

Owns the names of Triton's metrics and how they are put together; alerts, panels and autoscaling are built of these.
Called by slo_queries, rules, dashboard and the rendering for Kubernetes.

Times are those inside the server: network and client are not in them. Requests of the warm-up are counted by Triton
as any others; `rate` does not see those that were over before the first scrape.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from deploy.errors import UsageError

SUCCESSES = "nv_inference_request_success"
FAILURES = "nv_inference_request_failure"
ROWS = "nv_inference_count"
EXECUTIONS = "nv_inference_exec_count"
PENDING = "nv_inference_pending_request_count"

Stage = Literal["queue", "compute_input", "compute_infer", "compute_output", "request"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""Where a request's time goes; `request` is the whole, with what lies between the stages."""

LEAST = "1e-9"
"""Below any rate that is one: without traffic a quotient is 0 and not NaN, which no autoscaler understands."""

_DURATION = re.compile(r"(\d+(ms|s|m|h|d))+|\$__rate_interval")

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Which series are meant: those of `model` that have the labels of `matching`, `(("namespace", "shop"),)` say.

    `by` are the labels that results keep; each result is a sum over all others.
    """

    model: str
    matching: Labels = ()
    by: tuple[str, ...] = ("model",)

    def select(self, metric: str, window: str = "", *, extra: str = "") -> str:
        """The selector of a metric, with one more matcher, over a window where one is given."""
        chosen = matchers((("model", self.model), *self.matching))
        if extra:
            chosen = f"{chosen}, {extra}"
        return f"{metric}{{{chosen}}}{_window(window)}"

    def sum_rate(self, metric: str, window: str, *, extra: str = "", by: tuple[str, ...] = ()) -> str:
        """Events per second over the window, of all servers together."""
        kept = ", ".join((*self.by, *by))
        return f"sum by ({kept}) (rate({self.select(metric, window, extra=extra)}))"


def matchers(labels: Labels) -> str:
    """Labels as they stand between the braces of a selector. Raises UsageError for a name that is none."""
    for name, _ in labels:
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name):
            raise UsageError(f"{name!r} is no label of Prometheus", expected="letters, digits and underscores")
    return ", ".join(f'{name}="{_escaped(value)}"' for name, value in labels)


def request_rate(subject: Subject, window: str) -> str:
    """Answered requests per second, failures not among them."""
    return subject.sum_rate(SUCCESSES, window)


def failure_rate(subject: Subject, window: str) -> str:
    """Failed requests per second, one series per reason."""
    return subject.sum_rate(FAILURES, window, by=("reason",))


def failure_share(subject: Subject, window: str) -> str:
    """The share of requests that failed, for any reason; 0 without traffic."""
    failed = subject.sum_rate(FAILURES, window)
    return f"{failed} / clamp_min({failed} + {subject.sum_rate(SUCCESSES, window)}, {LEAST})"


def failure_share_by_reason(subject: Subject, window: str) -> str:
    """The share of requests that failed, one series per reason; 0 without traffic."""
    answered, failed = subject.sum_rate(SUCCESSES, window), subject.sum_rate(FAILURES, window)
    all_of_them = f"clamp_min({failed} + {answered}, {LEAST})"
    return f"{failure_rate(subject, window)} / ignoring (reason) group_left () {all_of_them}"


def stage_microseconds(subject: Subject, stage: Stage, window: str) -> str:
    """Mean microseconds that an answered request spent in a stage; 0 without traffic.

    Triton adds a request's time when the request is over: what still waits shows in `pending` alone.
    """
    spent = subject.sum_rate(f"nv_inference_{stage}_duration_us", window)
    return f"{spent} / clamp_min({subject.sum_rate(SUCCESSES, window)}, {LEAST})"


def queue_microseconds(subject: Subject, window: str) -> str:
    """Mean microseconds that an answered request waited in the queue: what replicas are scaled on."""
    return stage_microseconds(subject, "queue", window)


def queue_compute_ratio(subject: Subject, window: str) -> str:
    """How many times its computing a request waited, whatever the model's speed; 0 without traffic."""
    computing = subject.sum_rate("nv_inference_compute_infer_duration_us", window)
    return f"{subject.sum_rate('nv_inference_queue_duration_us', window)} / clamp_min({computing}, {LEAST})"


def batch_reached(subject: Subject, window: str) -> str:
    """Mean rows per execution; no series without traffic. `max_batch_size` is the most it can be."""
    return f"{subject.sum_rate(ROWS, window)} / ({subject.sum_rate(EXECUTIONS, window)} > 0)"


def pending(subject: Subject) -> str:
    """Requests that wait to be executed, of all servers together, at this moment."""
    return f"sum by ({', '.join(subject.by)}) ({subject.select(PENDING)})"


def up(scope: Labels) -> str:
    """Whether each scraped server of the scope answered Prometheus."""
    return f"up{{{matchers(scope)}}}" if scope else "up"


def not_served(subject: Subject) -> str:
    """One series per server that answers Prometheus and has no such model: one that is not ready exports nothing.

    With no labels to match, every scraped target that is no tritonserver would be found too: give the job at least.
    """
    return f"{up(subject.matching)} == 1 unless on (instance) {subject.select(SUCCESSES)}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _window(window: str) -> str:
    if window and not _DURATION.fullmatch(window):
        raise UsageError(f"{window!r} is no duration of PromQL", expected="such as 30s, 5m or 1h30m")
    return f"[{window}]" if window else ""
