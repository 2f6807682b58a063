"""The SLO check as a Job: `deployctl slo` from inside the cluster, whose exit code is the verdict that gates a rollout.

Owns its pod. Called by render for a Job of its own, and by canary as the measurement of an analysis.
"""

from deploy.errors import UsageError
from deploy.kubernetes.base import metadata
from deploy.kubernetes.delivery import COMPONENTS, models_mount, models_volume, pull_container
from deploy.kubernetes.plan import MODELS, Plan
from deploy.kubernetes.pod import LOCKED, RESTRICTED, TMP, Object
from deploy.kubernetes.request import Source
from deploy.slo.settings import PERCENTILES

CHECK = "slo"
_DEADLINE_SECONDS = 900
# The exit codes after which another try would say the same. Kubernetes before 1.29 wants the empty list.
_DECIDED: Object = {
    "action": "FailJob",
    "onExitCodes": {"containerName": CHECK, "operator": "In", "values": [1, 2, 3]},
    "onPodConditions": [],
}
_SOURCE = "/source"
# What the check computes with: one process that sends and times, and numpy.
_RESOURCES: Object = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}


def missing(plan: Plan) -> str:
    """Why no check can be rendered; empty where one can."""
    if plan.request.tool_image is None:
        return "no image holds deployctl: give --tool-image"
    if not plan.request.sources:
        return "the server's image holds no samples to ask with: give --models"
    if not plan.objectives:
        return "no objective is known: give --p99-ms or --slo, or run `deployctl slo`"
    return "" if plan.rate else "no rate is known: give --rate, or run `deployctl slo`"


def slo_job(plan: Plan) -> Object:
    """The Job that asks the Service, named after the version's digest: a Job is never changed, only made anew."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(plan, f"-slo-{plan.model.digest[:8]}"),
        "spec": job_spec(plan, service=f"{plan.name}-grpc"),
    }


def job_spec(plan: Plan, *, service: str) -> Object:
    """A Job that asks `service`: a verdict of no fails it at once, a run that proved nothing is tried again."""
    return {
        "backoffLimit": 2,
        "activeDeadlineSeconds": _DEADLINE_SECONDS,
        "ttlSecondsAfterFinished": 86_400,
        "podFailurePolicy": {"rules": [_DECIDED]},
        "template": {
            "metadata": {"labels": {**plan.labels, "app.kubernetes.io/component": "slo-check"}},
            "spec": _pod(plan, plan.request.sources[0], service),
        },
    }


def slo_arguments(plan: Plan, service: str) -> list[str]:
    """The command line of the check, without the program."""
    arguments = ["slo", str(plan.version), "--url", f"{service}:{plan.line.ports.grpc}", "--repository", MODELS]
    arguments += ["--rate", f"{plan.rate:g}"]
    for objective in plan.objectives:
        if objective.bound_ms is None:
            arguments += ["--error-rate", f"{objective.budget:g}"]
        else:
            arguments += [_percentile(objective.quantile), f"{objective.bound_ms:g}"]
    return arguments


def _percentile(quantile: float) -> str:
    options = {q: f"--{name.replace('_', '-')}" for name, q in PERCENTILES.items()}
    if quantile not in options:
        raise UsageError(
            f"an objective is for the share {quantile:g}", expected=f"one of {', '.join(map(str, options))}"
        )
    return options[quantile]


def _pod(plan: Plan, source: Source, service: str) -> Object:
    volumes: list[Object] = [{"name": "tmp", "emptyDir": {}}]
    if source.way == "store":
        models = {**models_mount(source), "readOnly": False}
        volumes.append(models_volume(plan, source))
    else:
        models = {"name": "models", "mountPath": MODELS}
        volumes += [{**models_volume(plan, source), "name": "source"}, {"name": "models", "emptyDir": {}}]
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": RESTRICTED,
        "nodeSelector": {"kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"},
        "initContainers": [pull_container(plan, source) if source.way == "store" else _copy(plan, source)],
        "containers": [
            {
                "name": CHECK,
                "image": plan.request.tool_image,
                "command": ["deployctl"],
                "args": slo_arguments(plan, service),
                "env": [{"name": "HOME", "value": TMP}],
                "resources": _RESOURCES,
                "securityContext": LOCKED,
                "volumeMounts": [models, {"name": "tmp", "mountPath": TMP}],
            }
        ],
        "volumes": volumes,
    }


def _copy(plan: Plan, source: Source) -> Object:
    """The samples lie with the version; its result is kept beside it, which a read-only volume would not take."""
    path = source.claim[1] if source.way == "claim" else ""
    inside: Object = {"name": "source", "mountPath": _SOURCE, "readOnly": True, **({"subPath": path} if path else {})}
    return {
        "name": f"copy-{COMPONENTS[source.way]}",
        "image": plan.request.tool_image,
        "command": ["/bin/cp", "-r", f"{_SOURCE}/{plan.version.name}", MODELS],
        "resources": _RESOURCES,
        "securityContext": LOCKED,
        "volumeMounts": [inside, {"name": "models", "mountPath": MODELS}],
    }
