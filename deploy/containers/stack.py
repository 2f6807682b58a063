"""The server with its Prometheus and Grafana on one machine: a compose file and what it mounts, as plain data.

Owns services, their confinement and how they find each other. Called by render.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.containers.dockerfiles import UID
from deploy.gpu import EXACT_FLOAT32
from deploy.monitoring.queries import Labels
from deploy.serve.ports import Ports

Document = dict[str, Any]

PROMETHEUS = "prom/prometheus:v3.5.0"
GRAFANA = "grafana/grafana:12.1.1"
MONITORING = "monitoring"
SCOPE: Labels = (("job", "triton"),)
"""The labels that Prometheus gives to everything it scrapes from the server."""

_SCRAPE_SECONDS = 5
# Beyond what the server itself is given to end its requests.
_GRACE_SECONDS = 10
_LEAST_TMP_MEGABYTES = 64
_CONFINED: Document = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "restart": "unless-stopped",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What the compose file says of the server: its image, where its repository lies from there, what it may use.

    `repository` is a path relative to the compose file. `unpacked_megabytes` is what loading writes to /tmp.
    """

    name: str
    image: str
    repository: str
    ports: Ports
    gpu: bool
    unpacked_megabytes: int
    exit_seconds: int
    pins: Mapping[str, str]


def compose(stack: Stack) -> Document:
    """The compose file. Its ports are this machine's own; Grafana's password comes from the environment."""
    return {
        "name": stack.name,
        "services": {"triton": _triton(stack), "prometheus": _prometheus(stack), "grafana": _grafana(stack)},
        "volumes": {"prometheus-data": None, "grafana-data": None},
    }


def prometheus_config(ports: Ports) -> Document:
    """What Prometheus scrapes and by which rules it judges."""
    return {
        "global": {"scrape_interval": f"{_SCRAPE_SECONDS}s", "evaluation_interval": f"{_SCRAPE_SECONDS * 3}s"},
        "rule_files": ["/etc/prometheus/rules.yaml"],
        "scrape_configs": [{"job_name": SCOPE[0][1], "static_configs": [{"targets": [f"triton:{ports.metrics}"]}]}],
    }


def grafana_datasource() -> Document:
    """Grafana's provisioned data source, under the uid that the dashboard names."""
    return {
        "apiVersion": 1,
        "datasources": [
            {
                "name": "Prometheus",
                "uid": "prometheus",
                "type": "prometheus",
                "access": "proxy",
                "url": "http://prometheus:9090",
                "isDefault": True,
                "editable": False,
                "jsonData": {"timeInterval": f"{_SCRAPE_SECONDS}s"},
            }
        ],
    }


def grafana_provider() -> Document:
    """Where Grafana finds its dashboards."""
    folder = {"path": "/var/lib/grafana-dashboards"}
    provider = {"name": "deployctl", "type": "file", "disableDeletion": True, "options": folder}
    return {"apiVersion": 1, "providers": [provider]}


def _triton(stack: Stack) -> Document:
    tmp = max(_LEAST_TMP_MEGABYTES, 2 * stack.unpacked_megabytes)
    service: Document = {
        "image": stack.image,
        "build": {
            "context": ".",
            "dockerfile": "server.Dockerfile",
            "additional_contexts": {"repository": f"${{MODEL_REPOSITORY:-{stack.repository}}}"},
        },
        "user": f"{UID}:{UID}",
        "init": True,
        "stop_grace_period": f"{stack.exit_seconds + _GRACE_SECONDS}s",
        # The backends exchange tensors in shared memory; an AOTInductor archive is unpacked to /tmp and loaded there.
        "shm_size": "256mb",
        "tmpfs": [f"/tmp:rw,exec,nosuid,nodev,mode=1777,size={tmp}m"],  # noqa: S108 - the container's own
        "ports": [_own(stack.ports.http), _own(stack.ports.grpc)],
        "expose": [str(stack.ports.metrics)],
        **_CONFINED,
    }
    if stack.gpu:
        device = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
        service["environment"] = dict(EXACT_FLOAT32)
    return service


def _prometheus(stack: Stack) -> Document:
    return {
        "image": pinned(PROMETHEUS, stack.pins.get("prometheus")),
        "command": [
            "--config.file=/etc/prometheus/prometheus.yaml",
            "--storage.tsdb.path=/prometheus",
            "--storage.tsdb.retention.time=30d",
        ],
        "volumes": [
            f"./{MONITORING}/prometheus.yaml:/etc/prometheus/prometheus.yaml:ro",
            f"./{MONITORING}/rules.yaml:/etc/prometheus/rules.yaml:ro",
            "prometheus-data:/prometheus",
        ],
        "ports": [_own(9090)],
        "depends_on": ["triton"],
        **_CONFINED,
    }


def _grafana(stack: Stack) -> Document:
    return {
        "image": pinned(GRAFANA, stack.pins.get("grafana")),
        "environment": {
            "GF_SECURITY_ADMIN_PASSWORD": "${GRAFANA_ADMIN_PASSWORD:?give Grafana a password}",
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
            "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        },
        "volumes": [
            f"./{MONITORING}/datasource.yaml:/etc/grafana/provisioning/datasources/prometheus.yaml:ro",
            f"./{MONITORING}/dashboards.yaml:/etc/grafana/provisioning/dashboards/deployctl.yaml:ro",
            f"./{MONITORING}/dashboards:/var/lib/grafana-dashboards:ro",
            "grafana-data:/var/lib/grafana",
        ],
        "tmpfs": ["/tmp:rw,nosuid,nodev,noexec"],  # noqa: S108 - the container's own
        "ports": [_own(3000)],
        "depends_on": ["prometheus"],
        **_CONFINED,
    }


def _own(port: int) -> str:
    """A port for this machine and nobody else: none of the three asks who you are, but for Grafana."""
    return f"127.0.0.1:{port}:{port}"


def pinned(image: str, digest: str | None) -> str:
    """The image by its digest too, where that is known."""
    return f"{image}@{digest}" if digest else image
