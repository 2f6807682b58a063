"""The pod: one server, what it may use and touch, when it counts as started, ready and alive, and how it ends.

Owns the pod template. Called by base; delivery patches its volumes, overlays its device.
"""

import math
from typing import Any

from deploy.kubernetes.digests import CHECK_FILE, CONFIG_KEY, content_hash, lists
from deploy.kubernetes.plan import MODELS, PRESTOP_SECONDS, UID, Plan
from deploy.kubernetes.sizing import quantity
from deploy.repository.layout import CONFIG_FILE
from deploy.serve.flags import EXECUTABLE

SERVER = "tritonserver"
CHECK = "check-digests"
LISTS = "/etc/deployctl"
TMP = "/tmp"  # noqa: S108 - a pod's own volume
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a pod's own volume
_SPREAD_OVER = ("topology.kubernetes.io/zone", "kubernetes.io/hostname")

_PROBE_SECONDS = 5

Object = dict[str, Any]

LOCKED: Object = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
"""The security context of every container."""

RESTRICTED: Object = {
    "runAsNonRoot": True,
    "runAsUser": UID,
    "runAsGroup": UID,
    "fsGroup": UID,
    # A volume of many files is not walked again at each start.
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""The security context of every pod; with LOCKED it is the restricted profile of the Pod Security Standards."""


def pod_template(plan: Plan) -> Object:
    """The template of the server's pods."""
    return {
        "metadata": {"labels": plan.labels, "annotations": pod_annotations(plan)},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": plan.grace_seconds,
            "securityContext": RESTRICTED,
            "nodeSelector": {"kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"},
            "topologySpreadConstraints": [_spread(plan, key) for key in _SPREAD_OVER],
            "initContainers": [check_container(plan)],
            "containers": [server_container(plan)],
            "volumes": volumes(plan),
        },
    }


def pod_annotations(plan: Plan) -> dict[str, str]:
    """Which version this is, to the byte."""
    return {
        "deployctl/version": str(plan.version),
        "deployctl/digest": f"sha256:{plan.model.digest}",
        # Of several containers, the one that logs and commands mean.
        "kubectl.kubernetes.io/default-container": SERVER,
    }


def config_files(plan: Plan) -> dict[str, str]:
    """What the pods' ConfigMap holds: the model's config as the server reads it, and the check with its lists."""
    return {CONFIG_KEY: plan.model.config, **lists(plan.model)}


def config_name(plan: Plan) -> str:
    """What the ConfigMap is called: after its content, so that pods are replaced when it changes."""
    return f"{plan.name}-{content_hash(config_files(plan))}"


def check_container(plan: Plan) -> Object:
    """The container that ends before the server starts, and keeps it from starting on anything but the proven files."""
    version = plan.version
    return {
        "name": CHECK,
        "image": plan.image,
        "command": ["/bin/sh", f"{LISTS}/{CHECK_FILE}", MODELS, LISTS, version.name, str(version.number)],
        "resources": resources(plan),
        "securityContext": LOCKED,
        "volumeMounts": [{"name": "config", "mountPath": LISTS, "readOnly": True}],
    }


def server_container(plan: Plan) -> Object:
    """The container of the server."""
    ports = plan.line.ports
    config = f"{MODELS}/{plan.version.name}/{CONFIG_FILE}"
    return {
        "name": SERVER,
        "image": plan.image,
        "command": [EXECUTABLE],
        "args": list(plan.flags),
        "ports": [
            {"name": "http", "containerPort": ports.http},
            {"name": "grpc", "containerPort": ports.grpc},
            {"name": "metrics", "containerPort": ports.metrics},
        ],
        # Loading and warm-up may take this long; only then do the other probes begin.
        "startupProbe": _probe(plan.ready_path, failures=math.ceil(plan.sizes.start_seconds / _PROBE_SECONDS)),
        # Out of the Services after two answers that do not come, and back in with the first that does.
        "readinessProbe": _probe(plan.ready_path, failures=2),
        # Killed only where the server itself does not answer for a minute: a busy one is not made faster by a restart.
        "livenessProbe": {**_probe("/v2/health/live", failures=6), "periodSeconds": 2 * _PROBE_SECONDS},
        # Requests come until every node knows that this pod ends; the signal is sent after that.
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sleep", str(PRESTOP_SECONDS)]}}},
        "resources": resources(plan),
        "securityContext": LOCKED,
        "volumeMounts": [
            {"name": "config", "mountPath": config, "subPath": CONFIG_KEY, "readOnly": True},
            {"name": "shared-memory", "mountPath": _SHARED_MEMORY},
            {"name": "tmp", "mountPath": TMP},
        ],
    }


def resources(plan: Plan) -> Object:
    """Memory is what was measured, and no more is promised than given; processors are not capped, which would stall."""
    memory = quantity(plan.sizes.memory)
    return {"requests": {"cpu": str(plan.sizes.cpus), "memory": memory}, "limits": {"memory": memory}}


def volumes(plan: Plan) -> list[Object]:
    """The volumes of a pod that reads the version: its config with the lists, and scratch space."""
    return [
        {"name": "config", "configMap": {"name": config_name(plan)}},
        # On disk and not noexec: an AOTInductor archive is unpacked here, and its library loaded from here.
        {"name": "tmp", "emptyDir": {"sizeLimit": quantity(plan.sizes.tmp)}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": quantity(plan.sizes.shared_memory)}},
    ]


def _probe(path: str, *, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": _PROBE_SECONDS,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }


def _spread(plan: Plan, topology: str) -> Object:
    return {
        "maxSkew": 1,
        "topologyKey": topology,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": plan.selector},
    }
