"""From a plan to a folder for kustomize: which objects lie in which file, and which folders build on which.

Owns the layout. Called by the command `k8s`. Everything is checked and rendered before the first file is written.

    base            what Kubernetes runs by itself
    components      one per way of delivery, and what needs the Prometheus operator
    overlays        what is applied: `cpu` or `gpu`, as the version was packaged; the others build on it
    slo-check       the Job that gates a rollout
    kserve          the same by KServe
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.gpu import EXACT_FLOAT32
from deploy.kubernetes import base, canary, checking, delivery, kserve, scaling, watching
from deploy.kubernetes.plan import Plan, make_plan
from deploy.kubernetes.pod import Object
from deploy.kubernetes.request import KubernetesRequest, Source
from deploy.yaml_text import yaml_text

MONITORING = "monitoring"
_GPU = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """Every file by its path below the output folder, the overlay to begin with, and what the user should know."""

    plan: Plan
    files: dict[str, str]
    overlay: str
    notes: tuple[str, ...]


def render(request: KubernetesRequest) -> Rendered:
    """The files of a request; nothing is written. Raises UsageError as `make_plan` does."""
    plan = make_plan(request)
    device = "gpu" if plan.gpu else "cpu"
    folders = {
        "base": _base(plan),
        **{f"components/{delivery.COMPONENTS[source.way]}": _delivery(plan, source) for source in request.sources},
        f"components/{MONITORING}": _monitoring(plan),
        f"overlays/{device}": _device(plan),
        **_scaled(plan, device),
        "overlays/canary": _canary(plan, device),
        **_checked(plan),
        **_kserve(plan),
    }
    files = {f"{folder}/{name}": text for folder, inside in folders.items() for name, text in inside.items()}
    return Rendered(plan=plan, files=files, overlay=f"overlays/{device}", notes=tuple(_notes(plan)))


Folder = dict[str, str]


def _base(plan: Plan) -> Folder:
    files = {
        "config.yaml": [base.config_map(plan)],
        "deployment.yaml": [base.deployment(plan)],
        "disruption-budget.yaml": [base.disruption_budget(plan)],
        "network-policy.yaml": [base.network_policy(plan)],
        "services.yaml": base.services(plan),
    }
    return _folder(plan, files, **_namespace(plan))


def _delivery(plan: Plan, source: Source) -> Folder:
    patches = [{**patch, "patch": yaml_text(patch["patch"])} for patch in delivery.component(plan, source)]
    return _folder(plan, {}, kind="Component", patches=patches)


def _monitoring(plan: Plan) -> Folder:
    files = {"pod-monitor.yaml": [watching.pod_monitor(plan)], "rules.yaml": [watching.prometheus_rule(plan)]}
    return _folder(plan, files, kind="Component")


def _device(plan: Plan) -> Folder:
    """The overlay that is applied first: where the pods run, and how they get the version."""
    components = [f"../../components/{delivery.COMPONENTS[source.way]}" for source in plan.request.sources[:1]]
    patch = _gpu_patch(plan) if plan.gpu else []
    target = {"kind": "Deployment", "name": plan.name}
    return _folder(
        plan,
        {},
        resources=["../../base"],
        components=components,
        patches=[{"target": target, "patch": yaml_text(patch)}] if patch else [],
    )


def _gpu_patch(plan: Plan) -> list[Object]:
    """One GPU per pod, of the kind that the version was packaged for; the labels are those of GPU feature discovery."""
    pod = "/spec/template/spec"
    patch: list[Object] = [
        {"op": "add", "path": f"{pod}/containers/0/resources/limits/{_GPU.replace('/', '~1')}", "value": "1"},
        {
            "op": "add",
            "path": f"{pod}/tolerations",
            "value": [{"key": _GPU, "operator": "Exists", "effect": "NoSchedule"}],
        },
        {
            "op": "add",
            "path": f"{pod}/containers/0/env",
            "value": [{"name": name, "value": value} for name, value in EXACT_FLOAT32.items()],
        },
    ]
    if plan.target.sm is not None:
        major, minor = divmod(plan.target.sm, 10)
        for part, value in (("major", major), ("minor", minor)):
            label = f"nvidia.com~1gpu.compute.{part}"
            patch.append({"op": "add", "path": f"{pod}/nodeSelector/{label}", "value": str(value)})
    return patch


def _scaled(plan: Plan, device: str) -> dict[str, Folder]:
    if plan.queue_microseconds is None:
        return {}
    adapter = {
        "autoscaler.yaml": [scaling.horizontal_pod_autoscaler(plan)],
        "adapter-rule.yaml": [scaling.adapter_rule(plan)],
    }
    keda = {"autoscaler.yaml": [scaling.scaled_object(plan)]}
    both = {
        **_canary_files(plan, scaled=True),
        **adapter,
        "autoscaler.yaml": [scaling.horizontal_pod_autoscaler(plan, canary.rollout_reference(plan))],
    }
    return {
        "overlays/autoscale": _watched_overlay(plan, device, adapter),
        "overlays/autoscale-keda": _watched_overlay(plan, device, keda),
        "overlays/canary-autoscale": _watched_overlay(plan, device, both),
    }


def _canary(plan: Plan, device: str) -> Folder:
    return _watched_overlay(plan, device, _canary_files(plan, scaled=False))


def _canary_files(plan: Plan, *, scaled: bool) -> dict[str, list[Object]]:
    return {
        "analysis.yaml": canary.analyses(plan),
        "rollout.yaml": [canary.rollout(plan, scaled=scaled)],
        "services.yaml": canary.services(plan),
    }


def _watched_overlay(plan: Plan, device: str, files: dict[str, list[Object]]) -> Folder:
    """An overlay on the device's, watched by Prometheus, in which another controller says how many pods there are."""
    target = {"kind": "Deployment", "name": plan.name}
    return _folder(
        plan,
        files,
        resources=[f"../{device}"],
        components=[f"../../components/{MONITORING}"],
        patches=[{"target": target, "patch": yaml_text([{"op": "remove", "path": "/spec/replicas"}])}],
        **_namespace(plan),
    )


def _checked(plan: Plan) -> dict[str, Folder]:
    if checking.missing(plan):
        return {}
    return {"slo-check": _folder(plan, {"job.yaml": [checking.slo_job(plan)]}, **_namespace(plan))}


def _kserve(plan: Plan) -> dict[str, Folder]:
    uri = kserve.storage_uri(plan)
    if uri is None:
        return {}
    files = {
        "config.yaml": [base.config_map(plan)],
        "runtime.yaml": [kserve.serving_runtime(plan)],
        "service.yaml": [kserve.inference_service(plan, uri)],
    }
    return {"kserve": _folder(plan, files, **_namespace(plan))}


def _notes(plan: Plan) -> Iterator[str]:
    if not plan.objectives:
        yield "no objective is known: no alert watches latency; give --p99-ms or --slo, or run `deployctl slo`"
    if plan.line.latency == "summaries":
        yield (
            f"{plan.target.name} is not known to export latency histograms: summaries are used, which cost throughput "
            "and prove no more than a lower bound of the share that is slow (docs/monitoring.md)"
        )
    if plan.queue_microseconds is None:
        yield f"no autoscaling: {plan.queue_basis}"
    if reason := checking.missing(plan):
        yield f"no SLO check: {reason}"
    if kserve.storage_uri(plan) is None:
        yield "no KServe objects: they need --models pvc://, s3:// or gs://"
    if "@" not in plan.image:
        yield f"{plan.image} is named by its tag: give --image with a digest to pin what runs"


def _namespace(plan: Plan) -> dict[str, str]:
    return {"namespace": plan.request.namespace} if plan.request.namespace else {}


def _folder(plan: Plan, files: dict[str, list[Object]], *, kind: str = "Kustomization", **parts: Any) -> Folder:
    """The files of a folder with their kustomization, whose empty parts are left out."""
    version = "v1alpha1" if kind == "Component" else "v1beta1"
    resources = [*parts.pop("resources", ()), *files]
    head = {"apiVersion": f"kustomize.config.k8s.io/{version}", "kind": kind}
    body = {key: value for key, value in {**parts, "resources": resources}.items() if value}
    written = {name: _file(plan, objects) for name, objects in files.items()}
    return {"kustomization.yaml": _file(plan, [{**head, **body}]), **written}


def _file(plan: Plan, documents: Sequence[Object]) -> str:
    header = f"# Rendered by `deployctl k8s` from {plan.version}; put your own changes into an overlay of your own.\n"
    return header + "---\n".join(yaml_text(document) for document in documents)
