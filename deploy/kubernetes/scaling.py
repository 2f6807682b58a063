"""More servers when requests wait: an HPA by the Prometheus adapter, or a ScaledObject by KEDA, on the same query.

Owns what is scaled on and how fast. Called by render. Replicas follow the mean time in the queue and not the processor:
a batching server is busy long before it is late.
"""

import re

from deploy.kubernetes.base import metadata, workload
from deploy.kubernetes.plan import Plan
from deploy.kubernetes.pod import Object
from deploy.monitoring.queries import SUCCESSES, Subject, queue_microseconds
from deploy.yaml_text import yaml_text

WINDOW = "2m"
_MOST = 4
# The adapter fills these in; as a label they pass through the query builder, and are put right after it.
_MATCHERS, _GROUPS = "<<.LabelMatchers>>", "<<.GroupBy>>"
_MARK = (("deployctl_matchers", "here"),)


def most_replicas(plan: Plan) -> int:
    """The most servers that scaling starts."""
    return plan.request.replicas * _MOST


def metric_name(plan: Plan) -> str:
    """What the adapter calls the mean time that a pod's requests wait; each model has its own."""
    return f"triton_queue_us_{re.sub(r'[^a-z0-9]+', '_', plan.name)}"


def horizontal_pod_autoscaler(plan: Plan, target: Object | None = None) -> Object:
    """The HPA of `target`, else of the Deployment: the mean over all pods of what their requests wait, per request."""
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {**metadata(plan), "annotations": _basis(plan)},
        "spec": {
            "scaleTargetRef": target or workload(plan),
            "minReplicas": plan.request.replicas,
            "maxReplicas": most_replicas(plan),
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {
                        "metric": {"name": metric_name(plan)},
                        "target": {"type": "AverageValue", "averageValue": str(plan.queue_microseconds)},
                    },
                }
            ],
            "behavior": _behavior(),
        },
    }


def adapter_rule(plan: Plan) -> Object:
    """The rule that makes the HPA's metric, to be put into the configuration of the Prometheus adapter."""
    matchers = ", ".join((f'model="{plan.version.name}"', 'namespace!=""', 'pod!=""'))
    rule = {
        "seriesQuery": f"{SUCCESSES}{{{matchers}}}",
        "resources": {"overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}},
        "name": {"matches": ".*", "as": metric_name(plan)},
        "metricsQuery": adapter_query(plan),
    }
    text = yaml_text({"rules": [rule]})
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(plan, "-prometheus-adapter-rule"),
        "data": {"config.yaml": text},
    }


def adapter_query(plan: Plan) -> str:
    """The adapter's query: `queue_microseconds` per pod, with the adapter's own selectors."""
    subject = Subject(model=plan.version.name, matching=_MARK, by=(_GROUPS,))
    return queue_microseconds(subject, WINDOW).replace('deployctl_matchers="here"', _MATCHERS)


def scaled_object(plan: Plan) -> Object:
    """KEDA's ScaledObject: the same time, over all servers together. Without an answer it keeps what there is."""
    subject = Subject(model=plan.version.name, matching=plan.rules.scope)
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {**metadata(plan), "annotations": _basis(plan)},
        "spec": {
            "scaleTargetRef": workload(plan),
            "minReplicaCount": plan.request.replicas,
            "maxReplicaCount": most_replicas(plan),
            "pollingInterval": 15,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior()}},
            "triggers": [
                {
                    "type": "prometheus",
                    # A mean over all servers is compared as it is: divided by their number it would be too small.
                    "metricType": "Value",
                    "metadata": {
                        "serverAddress": plan.request.prometheus,
                        "query": queue_microseconds(subject, WINDOW),
                        "threshold": str(plan.queue_microseconds),
                        # Prometheus without an answer is an error, and not an idle server.
                        "ignoreNullValues": "false",
                    },
                }
            ],
        },
    }


def _behavior() -> Object:
    """At most doubled while the last ones still start; one fewer at a time, and only after a calm five minutes."""
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "policies": [{"type": "Percent", "value": 100, "periodSeconds": 60}],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": 300,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
        },
    }


def _basis(plan: Plan) -> dict[str, str]:
    return {"deployctl/threshold": f"{plan.queue_microseconds} us in the queue per request: {plan.queue_basis}"}
