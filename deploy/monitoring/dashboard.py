"""A Grafana dashboard for served models, as plain data: the objectives first, then where time goes, then the machine.

Owns which panels there are and how they are laid out. What they ask is in `queries` and `slo_queries`. Called by the
rendering for docker.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from deploy.monitoring import queries, slo_queries
from deploy.monitoring.objective import Objective
from deploy.monitoring.queries import Subject
from deploy.monitoring.rules import RuleOptions, bad_share_series, burn_windows

DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
WINDOW = "$__rate_interval"
"""At least four scrapes, and wider when zoomed out: Grafana fills it in."""

_COLUMNS = 24
_SCHEMA = 39

Panel = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardOptions:
    """What is shown besides the models: how they are watched, and whether there is a GPU."""

    rules: RuleOptions = field(default_factory=RuleOptions)
    gpu: bool = False
    title: str = "Triton: served models"


def dashboard(
    models: tuple[str, ...], objectives: tuple[Objective, ...] = (), *, options: DashboardOptions | None = None
) -> dict[str, Any]:
    """The dashboard as Grafana reads it from a file. Equal arguments give equal data."""
    chosen = options or DashboardOptions()
    return {
        "uid": "triton-models",
        "title": chosen.title,
        "tags": ["triton"],
        "timezone": "browser",
        "schemaVersion": _SCHEMA,
        "version": 1,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_model_choice(models)]},
        "panels": list(_placed(_panels(objectives, chosen))),
    }


def _model_choice(models: tuple[str, ...]) -> dict[str, Any]:
    return {
        "name": "model",
        "label": "Model",
        "type": "custom",
        "query": ",".join(models),
        "current": {"text": models[0], "value": models[0]},
        "options": [{"text": name, "value": name, "selected": name == models[0]} for name in models],
        "multi": False,
        "includeAll": False,
    }


def _panels(objectives: tuple[Objective, ...], options: DashboardOptions) -> Iterator[Panel]:
    subject = options.rules.subject("$model")
    for objective in objectives:
        yield _burn_panel(objective, options.rules)
    yield from _traffic_panels(subject)
    yield from _latency_panels(subject, objectives, options.rules)
    if options.gpu:
        yield from _gpu_panels(options.rules)


def _burn_panel(objective: Objective, rules: RuleOptions) -> Panel:
    """The shares that the alerts read, as multiples of the budget."""
    asked = {
        f"last {window}": f"{bad_share_series(objective, window)} / {objective.budget:.12g}"
        for window in burn_windows(objective, rules)
    }
    title = f"{objective.model}: budget burn ({objective.wanted})"
    return _panel(title, asked, unit="x", about="1 uses the budget up just when its period is over; alerts fire above.")


def _traffic_panels(subject: Subject) -> Iterator[Panel]:
    yield _panel("Requests answered", {"{{model}}": queries.request_rate(subject, WINDOW)}, unit="reqps")
    yield _panel("Failures by reason", {"{{reason}}": queries.failure_rate(subject, WINDOW)}, unit="reqps")
    yield _panel(
        "Batch reached",
        {"rows per execution": queries.batch_reached(subject, WINDOW)},
        unit="short",
        about="max_batch_size is the most it can be; 1 under load means that requests are not merged.",
    )
    yield _panel("Requests waiting", {"waiting": queries.pending(subject)}, unit="short")


def _latency_panels(subject: Subject, objectives: tuple[Objective, ...], rules: RuleOptions) -> Iterator[Panel]:
    parts = [stage for stage in queries.STAGES if stage != "request"]
    stages = {stage.replace("_", " "): queries.stage_microseconds(subject, stage, WINDOW) for stage in parts}
    yield _panel("Mean latency by stage", stages, unit="µs", stacked=True)
    whole = {"mean request": queries.stage_microseconds(subject, "request", WINDOW)}
    yield _panel("Mean latency", whole, unit="µs", about="Inside the server. A mean says nothing about the slowest.")
    if rules.measure == "histograms":
        asked = {f"p{q * 100:g}": slo_queries.latency_quantile(subject, q, WINDOW) for q in (0.5, 0.9, 0.99)}
        yield _panel("Latency", asked, unit="ms", about="Interpolated between the histogram's buckets.")
    elif slo_queries.summary_quantiles(objectives):
        yield _panel(
            "Latency, by server",
            {"{{instance}} q{{quantile}}": subject.select(slo_queries.SUMMARY)},
            unit="µs",
            about="Quantiles of each server's last minute; they cannot be added up.",
        )


def _gpu_panels(rules: RuleOptions) -> Iterator[Panel]:
    scope = queries.matchers(rules.scope)
    yield _panel("GPU busy", {"{{gpu_uuid}}": f"nv_gpu_utilization{{{scope}}}"}, unit="percentunit")
    yield _panel("GPU memory used", {"{{gpu_uuid}}": f"nv_gpu_memory_used_bytes{{{scope}}}"}, unit="bytes")


def _panel(title: str, asked: dict[str, str], *, unit: str, about: str = "", stacked: bool = False) -> Panel:
    """A graph of queries by legend. The unit `x` is a plain number with an x behind it."""
    custom = {"fillOpacity": 30, "stacking": {"mode": "normal", "group": "A"}} if stacked else {"fillOpacity": 0}
    return {
        "type": "timeseries",
        "title": title,
        "description": about,
        "datasource": DATASOURCE,
        "fieldConfig": {
            "defaults": {"unit": "suffix:x" if unit == "x" else unit, "min": 0, "custom": custom},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": DATASOURCE, "expr": expression, "legendFormat": legend}
            for number, (legend, expression) in enumerate(asked.items())
        ],
    }


def _placed(panels: Iterator[Panel]) -> Iterator[Panel]:
    """The panels two in a row, each with its number."""
    width, height = _COLUMNS // 2, 8
    for number, panel in zip(count(), panels, strict=False):
        place = {"x": number % 2 * width, "y": number // 2 * height, "w": width, "h": height}
        yield {"id": number + 1, "gridPos": place, **panel}
