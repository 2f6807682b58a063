"""How the pods are watched: a PodMonitor that scrapes them, and a PrometheusRule with the alerts.

Owns the two objects of the Prometheus operator; the rules are deploy.monitoring's. Called by render.
"""

from deploy.kubernetes.base import metadata
from deploy.kubernetes.plan import Plan
from deploy.kubernetes.pod import Object
from deploy.monitoring.rules import rule_groups

SCRAPE_SECONDS = 15
HASH_LABEL = "rollouts-pod-template-hash"
"""The label that Argo Rollouts gives to the pods of one revision; as a label of series it has underscores."""


def pod_monitor(plan: Plan) -> Object:
    """The PodMonitor. The series' `job` is the pods' name, which alerts and scaling select by."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata(plan),
        "spec": {
            "selector": {"matchLabels": plan.selector},
            "jobLabel": "app.kubernetes.io/name",
            "podTargetLabels": [HASH_LABEL],
            "podMetricsEndpoints": [{"port": "metrics", "path": "/metrics", "interval": f"{SCRAPE_SECONDS}s"}],
        },
    }


def prometheus_rule(plan: Plan) -> Object:
    """The alerts, as the operator reads them."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": metadata(plan),
        "spec": rule_groups((plan.version.name,), plan.objectives, options=plan.rules),
    }
