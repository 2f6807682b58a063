"""Recording rules and alerts for served models, as plain data: a rules file and a PrometheusRule hold the same groups.

Owns which alerts there are, when they fire and what they tell whom; docs/monitoring.md has a section for each. Called
by the rendering for docker and for Kubernetes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from deploy.errors import UsageError
from deploy.monitoring import queries, slo_queries
from deploy.monitoring.burn import BURNS, Burn, duration
from deploy.monitoring.objective import Objective
from deploy.monitoring.queries import Labels, Subject
from deploy.monitoring.slo_queries import Measure

AlertName = Literal[
    "TritonNoServer",
    "TritonServerDown",
    "TritonModelNotServed",
    "TritonRequestsFailing",
    "TritonQueueSaturated",
    "TritonBudgetBurn",
    "TritonObjectiveUnmeasured",
]

_PERIOD_DAYS = 30

Rule = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleOptions:
    """How models are watched. `scope` are labels that every series of these servers has, their job first of all.

    `measure` is how latency is exported (`Production.latency`). `scale` shortens every window alike, for tests.
    `queue_ratio` is how many times its computing a request may wait where no bound says more. `runbook` is the
    address of docs/monitoring.md where those who are woken can read it.
    """

    scope: Labels = (("job", "triton"),)
    measure: Measure = "histograms"
    burns: tuple[Burn, ...] = BURNS
    scale: float = 1.0
    queue_ratio: float = 2.0
    failing_share: float = 0.01
    runbook: str = "docs/monitoring.md"

    def __post_init__(self) -> None:
        if not self.scope:
            raise UsageError("alerts have no scope", expected='labels that find the servers, such as job="triton"')

    def window(self, seconds: float) -> str:
        """A window or a patience of so many seconds, scaled, as PromQL writes it."""
        return duration(seconds * self.scale)

    def subject(self, model: str) -> Subject:
        """The series of a model within the scope."""
        return Subject(model=model, matching=self.scope)

    def alert(self, name: AlertName, expression: str, *, hold: float, labels: dict[str, str], summary: str) -> Rule:
        """The rule that fires once `expression` has had an answer for `hold` seconds."""
        return {
            "alert": name,
            "expr": expression,
            "for": self.window(hold),
            "labels": labels,
            "annotations": {"summary": summary, "runbook_url": f"{self.runbook}#{name.lower()}"},
        }


def rule_groups(
    models: tuple[str, ...], objectives: tuple[Objective, ...] = (), *, options: RuleOptions | None = None
) -> dict[str, list[Rule]]:
    """`{"groups": [...]}` as both a rules file and the `spec` of a PrometheusRule hold it: servers, then each model.

    Raises UsageError if an objective is for none of the models, or no alarm of its budget could ever fire.
    """
    chosen = options or RuleOptions()
    strangers = sorted({objective.model for objective in objectives} - set(models))
    if strangers:
        raise UsageError(f"there are objectives for {', '.join(strangers)}", expected=f"one of {', '.join(models)}")
    groups = [{"name": "triton-servers", "rules": list(_server_alerts(chosen))}]
    for model in models:
        own = tuple(objective for objective in objectives if objective.model == model)
        rules = [*_recordings(own, chosen), *_model_alerts(model, own, chosen)]
        groups.append({"name": f"triton-model-{model}", "rules": rules})
    return {"groups": groups}


def rules_file(groups: dict[str, list[Rule]]) -> str:
    """The groups as the YAML that Prometheus reads under `rule_files`."""
    from deploy.yaml_text import yaml_text

    return yaml_text(groups)


def bad_share_series(objective: Objective, window: str, *, selecting: bool = True) -> str:
    """The recorded share of a window's requests that broke the promise: its name, or the selector of its series."""
    name = f"model:triton_slo_bad:share{window}"
    return f"{name}{{{queries.matchers(_labels(objective))}}}" if selecting else name


def burn_windows(objective: Objective, options: RuleOptions) -> tuple[str, ...]:
    """The windows in which the objective's broken requests are recorded, the shortest first."""
    seconds = {window for burn in _possible(objective, options) for window in (burn.short, burn.long)}
    return tuple(map(options.window, sorted(seconds)))


def _server_alerts(options: RuleOptions) -> Iterator[Rule]:
    up = queries.up(options.scope)
    yield options.alert(
        "TritonNoServer",
        f"absent({up} == 1)",
        hold=60,
        labels={"severity": "page"},
        summary="No tritonserver answers Prometheus.",
    )
    yield options.alert(
        "TritonServerDown",
        f"{up} == 0",
        hold=120,
        labels={"severity": "ticket"},
        summary="The tritonserver at {{ $labels.instance }} does not answer Prometheus.",
    )


def _recordings(objectives: tuple[Objective, ...], options: RuleOptions) -> Iterator[Rule]:
    for objective in objectives:
        subject = options.subject(objective.model)
        if objective.bound_ms is not None and options.measure == "summaries":
            expression = slo_queries.slow_now(objective, subject, options.burns)
            yield {"record": slo_queries.SLOW_NOW, "expr": expression, "labels": {"slo": objective.name}}
        for window in burn_windows(objective, options):
            expression = slo_queries.bad_share(objective, subject, window, measure=options.measure)
            name = bad_share_series(objective, window, selecting=False)
            yield {"record": name, "expr": expression, "labels": {"slo": objective.name}}


def _model_alerts(model: str, objectives: tuple[Objective, ...], options: RuleOptions) -> Iterator[Rule]:
    subject = options.subject(model)
    yield options.alert(
        "TritonModelNotServed",
        queries.not_served(subject),
        hold=120,
        labels={"severity": "page", "model": model},
        summary=f"{{{{ $labels.instance }}}} runs and does not serve {model}.",
    )
    yield options.alert(
        "TritonRequestsFailing",
        f"{queries.failure_share_by_reason(subject, options.window(300))} > {options.failing_share:g}",
        hold=300,
        labels={"severity": "ticket"},
        summary=f"{{{{ $value | humanizePercentage }}}} of the requests for {model} fail: {{{{ $labels.reason }}}}.",
    )
    yield _queue_alert(subject, objectives, options)
    for objective in objectives:
        yield from _objective_alerts(objective, subject, options)


def _queue_alert(subject: Subject, objectives: tuple[Objective, ...], options: RuleOptions) -> Rule:
    """Waiting is judged by the tightest bound where there is one: a batcher's own delay is no fault."""
    bounds = [objective.bound_ms for objective in objectives if objective.bound_ms is not None]
    window = options.window(300)
    if bounds:
        expression = f"{queries.queue_microseconds(subject, window)} > {min(bounds) * 500:.15g}"
        waited = '{{ printf "%.0f" $value }} us'
        summary = f"Requests for {subject.model} wait {waited}, over half of their {min(bounds):g} ms."
    else:
        expression = f"{queries.queue_compute_ratio(subject, window)} > {options.queue_ratio:g}"
        summary = (
            f'Requests for {subject.model} wait {{{{ printf "%.1f" $value }}}} times as long as they are computed.'
        )
    return options.alert("TritonQueueSaturated", expression, hold=600, labels={"severity": "ticket"}, summary=summary)


def _objective_alerts(objective: Objective, subject: Subject, options: RuleOptions) -> Iterator[Rule]:
    for burn in _possible(objective, options):
        long, short = options.window(burn.long), options.window(burn.short)
        limit = f"{burn.factor * objective.budget:.12g}"
        both = [f"{bad_share_series(objective, window)} > {limit}" for window in (long, short)]
        days = _PERIOD_DAYS / burn.factor
        yield options.alert(
            "TritonBudgetBurn",
            " and ".join(both),
            hold=burn.hold,
            labels={"severity": burn.severity, "slo": objective.name, "burn": f"{burn.factor:g}", "window": long},
            summary=(
                f"{{{{ $value | humanizePercentage }}}} of the last {long}'s requests for {objective.model} broke: "
                f"{objective.wanted}. At over {burn.factor:g} times the allowed rate a {_PERIOD_DAYS}-day "
                f"budget lasts under {days:.2g} days."
            ),
        )
    yield options.alert(
        "TritonObjectiveUnmeasured",
        slo_queries.unmeasured(objective, subject, measure=options.measure),
        hold=600,
        labels={"severity": "ticket", "slo": objective.name},
        summary=f"{objective.model} is served, and nothing exported tells whether it keeps: {objective.wanted}.",
    )


def _possible(objective: Objective, options: RuleOptions) -> tuple[Burn, ...]:
    found = tuple(burn for burn in options.burns if burn.can_fire(objective.budget))
    if not found:
        raise UsageError(
            f"no alarm could watch that {objective.wanted} of {objective.model}",
            expected=f"a budget under {1 / min(burn.factor for burn in options.burns):.3g}, here {objective.budget:g}",
        )
    return found


def _labels(objective: Objective) -> Labels:
    return (("model", objective.model), ("slo", objective.name))
