"""A new version for a part of the pods first, and for all only if it keeps its promises: a Rollout of Argo Rollouts.

Owns the Rollout, its two Services and the analyses. The pods are the Deployment's, by reference; the queries are those
of the alerts, narrowed to the new pods. Called by render.
"""

from deploy.kubernetes import checking
from deploy.kubernetes.base import metadata, workload
from deploy.kubernetes.plan import Plan
from deploy.kubernetes.pod import Object
from deploy.kubernetes.watching import HASH_LABEL, SCRAPE_SECONDS
from deploy.monitoring.objective import Objective
from deploy.monitoring.queries import Subject, failure_share
from deploy.monitoring.slo_queries import bad_share, slow_now

CANARY, STABLE = "-canary", "-stable"
ANALYSIS, GATE = "-canary", "-slo"
_HASH = "canary-hash"
_WINDOW = "2m"
_INTERVAL_SECONDS = 60
# Two minutes of a part of the traffic are few requests: chance alone may double the share.
_ALLOWED = 2.0
_FAILING_SHARE = 0.01


def rollout_reference(plan: Plan) -> Object:
    """The Rollout as an autoscaler names it."""
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": plan.name}


def rollout(plan: Plan, *, scaled: bool = False) -> Object:
    """The Rollout. It scales the Deployment down as its own pods come, so that moving to it loses no server.

    One that is `scaled` leaves the number of pods to an autoscaler: said in both, each apply would set it back.
    """
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Rollout",
        "metadata": metadata(plan),
        "spec": {
            **({} if scaled else {"replicas": plan.request.replicas}),
            "revisionHistoryLimit": 5,
            "progressDeadlineSeconds": plan.sizes.start_seconds + 300,
            "progressDeadlineAbort": True,
            "workloadRef": {**workload(plan), "scaleDown": "progressively"},
            "strategy": {"canary": _strategy(plan)},
        },
    }


def services(plan: Plan) -> list[Object]:
    """The Services of the new pods and of the old ones; Argo Rollouts adds the revision to their selectors."""
    ports = plan.line.ports
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(plan, suffix),
            "spec": {
                "type": "ClusterIP",
                "selector": plan.selector,
                "ports": [
                    {"name": "http", "port": ports.http, "targetPort": "http", "protocol": "TCP"},
                    {"name": "grpc", "port": ports.grpc, "targetPort": "grpc", "protocol": "TCP"},
                ],
            },
        }
        for suffix in (CANARY, STABLE)
    ]


def analyses(plan: Plan) -> list[Object]:
    """The analysis of the new pods' metrics, and the SLO check of the new pods where there is one."""
    found = [_template(plan, ANALYSIS, args=[{"name": _HASH}], metrics=_metrics(plan))]
    if not checking.missing(plan):
        spec = checking.job_spec(plan, service=f"{plan.name}{CANARY}")
        metric = {"name": "slo", "provider": {"job": {"spec": spec}}, "failureLimit": 0}
        found.append(_template(plan, GATE, args=[], metrics=[metric]))
    return found


def _strategy(plan: Plan) -> Object:
    first: list[Object] = [{"setWeight": 10}]
    if not checking.missing(plan):
        first.append({"analysis": {"templates": [{"templateName": f"{plan.name}{GATE}"}]}})
    return {
        "canaryService": f"{plan.name}{CANARY}",
        "stableService": f"{plan.name}{STABLE}",
        "maxSurge": 1,
        "maxUnavailable": 0,
        "steps": [*first, {"pause": {"duration": "10m"}}, {"setWeight": 50}, {"pause": {"duration": "10m"}}],
        "analysis": {
            "startingStep": 1,
            "templates": [{"templateName": f"{plan.name}{ANALYSIS}"}],
            "args": [{"name": _HASH, "valueFrom": {"podTemplateHashValue": "Latest"}}],
        },
    }


def _metrics(plan: Plan) -> list[Object]:
    hashed = ((HASH_LABEL.replace("-", "_"), f"{{{{args.{_HASH}}}}}"),)
    subject = Subject(model=plan.version.name, matching=(*plan.rules.scope, *hashed))
    metrics = [_metric(plan, "failures", failure_share(subject, _WINDOW), _FAILING_SHARE)]
    for objective in plan.objectives:
        query = _broken(plan, objective, subject)
        metrics.append(_metric(plan, objective.name.replace(".", "-"), query, _ALLOWED * objective.budget))
    return metrics


def _broken(plan: Plan, objective: Objective, subject: Subject) -> str:
    """The share of the new pods' requests that broke the promise. What is recorded for alerts is not told by pod."""
    if objective.bound_ms is not None and plan.rules.measure == "summaries":
        return f"{slow_now(objective, subject)} + {failure_share(subject, _WINDOW)}"
    return bad_share(objective, subject, _WINDOW, measure=plan.rules.measure)


def _metric(plan: Plan, name: str, query: str, limit: float) -> Object:
    """A query asked again and again; no answer counts as a bad one, since a canary that is not seen proves nothing."""
    return {
        "name": name,
        "initialDelay": f"{4 * SCRAPE_SECONDS + _INTERVAL_SECONDS}s",
        "interval": f"{_INTERVAL_SECONDS}s",
        "successCondition": f"len(result) > 0 && result[0] <= {limit:.12g}",
        "failureLimit": 2,
        "provider": {"prometheus": {"address": plan.request.prometheus, "query": query}},
    }


def _template(plan: Plan, suffix: str, *, args: list[Object], metrics: list[Object]) -> Object:
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "AnalysisTemplate",
        "metadata": metadata(plan, suffix),
        "spec": {**({"args": args} if args else {}), "metrics": metrics},
    }
