"""The objects that every way of running a version shares: Deployment, Services, disruption budget, network, config.

Owns these. Called by render. Nothing here needs more than Kubernetes itself.
"""

from typing import Any

from deploy.kubernetes.plan import Plan
from deploy.kubernetes.pod import Object, config_files, config_name, pod_template
from deploy.kubernetes.request import prometheus_namespace


def metadata(plan: Plan, suffix: str = "") -> Object:
    """Name and labels of an object; the namespace is kustomize's to say."""
    return {"name": f"{plan.name}{suffix}", "labels": plan.labels}


def workload(plan: Plan) -> Object:
    """The Deployment as other objects name it."""
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": plan.name}


def deployment(plan: Plan) -> Object:
    """The Deployment: a new pod serves before an old one goes."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**metadata(plan), "annotations": _basis(plan)},
        "spec": {
            "replicas": plan.request.replicas,
            "revisionHistoryLimit": 5,
            # A start that is never ready ends the rollout, and the old pods go on.
            "progressDeadlineSeconds": plan.sizes.start_seconds + 300,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": plan.selector},
            "template": pod_template(plan),
        },
    }


def services(plan: Plan) -> list[Object]:
    """HTTP behind one address, gRPC and metrics headless: one address would pin each gRPC client to one pod."""
    ports = plan.line.ports
    return [
        _service(plan, "", {"name": "http", "port": ports.http, "targetPort": "http", "appProtocol": "http"}),
        _service(
            plan,
            "-grpc",
            {"name": "grpc", "port": ports.grpc, "targetPort": "grpc", "appProtocol": "kubernetes.io/h2c"},
            headless=True,
        ),
        _service(plan, "-metrics", {"name": "metrics", "port": ports.metrics, "targetPort": "metrics"}, headless=True),
    ]


def config_map(plan: Plan) -> Object:
    """The model's config as the server reads it, and the digests that its files must have.

    Named by what it holds: the pods of the version before keep theirs, and may start again with it.
    """
    named = {**metadata(plan), "name": config_name(plan)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": named, "immutable": True, "data": config_files(plan)}


def disruption_budget(plan: Plan) -> Object:
    """Nodes are drained one server at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(plan),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": plan.selector}},
    }


def network_policy(plan: Plan) -> Object:
    """Clients of the same namespace, Prometheus for the metrics, and no way out: a server that serves needs none."""
    ports = plan.line.ports
    namespace = prometheus_namespace(plan.request.prometheus)
    watcher = {"matchLabels": {"kubernetes.io/metadata.name": namespace}} if namespace else {}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(plan),
        "spec": {
            "podSelector": {"matchLabels": plan.selector},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [{"podSelector": {}}], "ports": [_tcp(ports.http), _tcp(ports.grpc)]},
                {"from": [{"namespaceSelector": watcher}], "ports": [_tcp(ports.metrics)]},
            ],
            "egress": [],
        },
    }


def _service(plan: Plan, suffix: str, port: Object, *, headless: bool = False) -> Object:
    spec: dict[str, Any] = {"selector": plan.selector, "ports": [{**port, "protocol": "TCP"}]}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(plan, suffix),
        "spec": {"clusterIP": "None", **spec} if headless else {"type": "ClusterIP", **spec},
    }


def _tcp(port: int) -> Object:
    return {"protocol": "TCP", "port": port}


def _basis(plan: Plan) -> dict[str, str]:
    """Where the numbers are from, for whoever would change them."""
    return {"deployctl/sizes": "\n".join(plan.sizes.basis)}
