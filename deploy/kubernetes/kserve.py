"""The same version by KServe: a ServingRuntime with the server's command line, and an InferenceService that uses it.

Owns the two objects, and what differs below KServe: where it puts the repository, and which ports it expects. Called
by render.
"""

from dataclasses import replace

from deploy.kubernetes.base import metadata
from deploy.kubernetes.digests import CHECK_FILE
from deploy.kubernetes.plan import Plan
from deploy.kubernetes.pod import LISTS, LOCKED, Object, server_container, volumes
from deploy.kubernetes.request import Source
from deploy.serve.flags import EXECUTABLE, production_flags
from deploy.serve.ports import Ports

MODELS = "/mnt/models"
PORTS = Ports(http=8080, grpc=9000, metrics=8002)
CONTAINER = "kserve-container"
# KServe's own downloader knows these; its `oci://` means an image that is laid out in its own way.
_SCHEMES = ("s3", "gs")


def storage_uri(plan: Plan) -> str | None:
    """Where KServe gets the repository from; None where it has no way that these sources name."""
    return next((uri for source in plan.request.sources if (uri := _uri(source))), None)


def serving_runtime(plan: Plan) -> Object:
    """The runtime: the server as the Deployment starts it, after the check of the digests.

    The check runs in the same container, since nothing says when KServe's own download has ended before another one
    begins.
    """
    version = plan.version
    check = f"/bin/sh {LISTS}/{CHECK_FILE} {MODELS} {LISTS} {version.name} {version.number}"
    line = replace(plan.line, repository=MODELS, ports=PORTS)
    server = server_container(plan)
    container = {
        **server,
        "name": CONTAINER,
        "command": ["/bin/sh", "-ec", f'{check} && exec "$0" "$@"', EXECUTABLE],
        "args": list(production_flags(line)),
        "ports": [
            {"name": "http", "containerPort": PORTS.http, "protocol": "TCP"},
            {"name": "h2c", "containerPort": PORTS.grpc, "protocol": "TCP"},
            {"name": "metrics", "containerPort": PORTS.metrics, "protocol": "TCP"},
        ],
        "securityContext": LOCKED,
        "volumeMounts": [
            {"name": "config", "mountPath": LISTS, "readOnly": True},
            *(mount for mount in server["volumeMounts"] if mount["name"] != "config"),
        ],
    }
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": metadata(plan),
        "spec": {
            "supportedModelFormats": [{"name": "triton", "version": "2"}],
            "protocolVersions": ["v2", "grpc-v2"],
            "containers": [container],
            "volumes": volumes(plan),
        },
    }


def inference_service(plan: Plan, uri: str) -> Object:
    """The service, as a plain Deployment: a server that loads for a minute is not scaled to zero and back."""
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {**metadata(plan), "annotations": {"serving.kserve.io/deploymentMode": "RawDeployment"}},
        "spec": {
            "predictor": {
                "minReplicas": plan.request.replicas,
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": plan.grace_seconds,
                "model": {
                    "modelFormat": {"name": "triton", "version": "2"},
                    "protocolVersion": "v2",
                    "runtime": plan.name,
                    "storageUri": uri,
                },
            }
        },
    }


def _uri(source: Source) -> str | None:
    if source.way == "claim":
        return f"pvc://{source.place}"
    known = source.way == "store" and source.place.partition("://")[0] in _SCHEMES
    return source.place if known else None
