"""k8s/ is what is rendered, kustomize builds every overlay, each object fits its schema, and all agree.

Each of these gates is shown manifests that it refuses.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes.write import RECORD_FILE
from tests.kubernetes.agreement import disagreements, one
from tests.kubernetes.conftest import Build, BuildFailed, Objects
from tests.kubernetes.example import EXAMPLES, OUTPUT, example
from tests.kubernetes.schema import IMAGE_VOLUMES_SINCE, NEWEST, OLDEST, Misfit, check
from tests.markdown import ROOT, coded, table

VERSIONS = (OLDEST, IMAGE_VOLUMES_SINCE, NEWEST)
SHARED = {"overlays/autoscale", "overlays/autoscale-keda", "overlays/canary", "overlays/canary-autoscale"}
FOLDERS = {
    "cpu": {
        "base",
        "overlays/cpu",
        "overlays/autoscale",
        "overlays/autoscale-keda",
        "overlays/canary",
        "overlays/canary-autoscale",
        "slo-check",
        "kserve",
    },
    "gpu": {"base", "overlays/gpu"} | SHARED,
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_folder_is_what_is_rendered(name: str) -> None:
    """To render it again: `python -m tests.kubernetes.example`."""
    there = {path.relative_to(OUTPUT / name).as_posix(): path.read_text() for path in (OUTPUT / name).rglob("*.yaml")}
    assert there == example(name).files
    assert (OUTPUT / name / RECORD_FILE).is_file()


def test_the_page_names_the_folders_that_there_are() -> None:
    page = ROOT / "docs" / "kubernetes.md"
    named = {word for row in table(page, "What is in the folder") for word in coded(row[0])} - {
        "components/models-from-*"
    }
    rendered = {Path(path).parent.as_posix() for name in EXAMPLES for path in example(name).files}
    assert named == {folder for folder in rendered if "models-from" not in folder}


def test_every_overlay_is_built(built: dict[str, Objects]) -> None:
    assert set(built) == {f"{name}/{folder}" for name, folders in FOLDERS.items() for folder in folders}


def test_each_object_fits_its_schema_at_each_version(built: dict[str, Objects]) -> None:
    unique = {yaml.safe_dump(o): o for objects in built.values() for o in objects}
    assert len(unique) > 30
    for document in unique.values():
        for version in VERSIONS:
            check(document, version)


def test_the_objects_of_each_overlay_agree(built: dict[str, Objects]) -> None:
    assert {name: found for name, objects in built.items() if (found := disagreements(objects))} == {}


def server(objects: Objects) -> dict[str, Any]:
    containers = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert isinstance(containers[0], dict)
    return containers[0]


def test_kustomize_refuses_a_patch_for_what_is_not_there(build: Build, tmp_path: Path) -> None:
    for path, text in example("gpu").files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text.replace("/spec/replicas", "/spec/replica"))
    with pytest.raises(BuildFailed, match="replica"):
        build(tmp_path / "overlays/autoscale")


@pytest.mark.parametrize(
    ("overlay", "kind", "break_it", "word"),
    [
        ("cpu", "Deployment", lambda o: server([o]).update(readynessProbe={}), "readynessProbe"),
        ("cpu", "Service", lambda o: o["spec"]["ports"][0].update(port="8000"), "8000"),
        ("cpu", "Deployment", lambda o: o.update(apiVersion="apps/v1beta9"), "is no kind"),
        ("cpu", "NetworkPolicy", lambda o: o.update(kind="NetworkPolice"), "is no kind"),
        ("autoscale", "PodMonitor", lambda o: o["spec"]["podMetricsEndpoints"][0].update(intervall="15s"), "intervall"),
        ("autoscale", "PodMonitor", lambda o: o["spec"].pop("selector"), "selector"),
        ("autoscale", "PrometheusRule", lambda o: o["spec"]["groups"][0]["rules"][0].update(summary="x"), "summary"),
        ("autoscale", "HorizontalPodAutoscaler", lambda o: o["spec"].update(maxReplicas="8"), "maxReplicas"),
        ("autoscale-keda", "ScaledObject", lambda o: o["spec"]["triggers"][0].update(metadata={"a": 5}), "metadata"),
        ("autoscale-keda", "ScaledObject", lambda o: o["spec"].update(minReplicas=2), "minReplicas"),
        ("canary", "Rollout", lambda o: o["spec"]["strategy"]["canary"].update(step=[]), "step"),
        ("canary", "AnalysisTemplate", lambda o: o["spec"]["metrics"][0].pop("provider"), "provider"),
        ("canary", "Certificate", lambda o: None, "is no kind"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    overlay: str, kind: str, break_it: Callable[[Any], object], word: str, built: dict[str, Objects]
) -> None:
    found = [o for o in built[f"cpu/overlays/{overlay}"] if o["kind"] == kind]
    document = copy.deepcopy(found[0]) if found else {"apiVersion": "cert-manager.io/v1", "kind": kind}
    break_it(document)
    for version in VERSIONS:
        with pytest.raises(Misfit, match=word):
            check(document, version)


@pytest.mark.parametrize(
    ("kind", "break_it", "word"),
    [
        ("ServingRuntime", lambda o: o["spec"]["containers"][0].update(argz=[]), "argz"),
        ("ServingRuntime", lambda o: o["spec"].update(supportedModelFormat=[]), "supportedModelFormat"),
        ("InferenceService", lambda o: o["spec"]["predictor"]["model"].update(storageURI="s3://x"), "storageURI"),
        ("InferenceService", lambda o: o["spec"]["predictor"].update(minReplicas="2"), "minReplicas"),
    ],
)
def test_what_kserve_does_not_take_is_refused(
    kind: str, break_it: Callable[[Any], object], word: str, built: dict[str, Objects]
) -> None:
    document = copy.deepcopy(one(built["cpu/kserve"], kind))
    break_it(document)
    with pytest.raises(Misfit, match=word):
        check(document, NEWEST)


def test_an_image_volume_is_refused_where_there_is_none_yet(build: Build, tmp_path: Path) -> None:
    """The overlay with another way of delivery, which is one line of its kustomization."""
    for path, text in example("cpu").files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text.replace("components/models-from-store", "components/models-from-image"))
    deployment = one(build(tmp_path / "overlays/cpu"), "Deployment")
    check(deployment, IMAGE_VOLUMES_SINCE)
    with pytest.raises(Misfit, match="image"):
        check(deployment, "1.30")


@pytest.mark.parametrize("way", ["store", "claim", "image"])
def test_each_way_of_delivery_agrees_with_the_rest(way: str, build: Build, tmp_path: Path) -> None:
    for path, text in example("cpu").files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text.replace("components/models-from-store", f"components/models-from-{way}"))
    objects = build(tmp_path / "overlays/cpu")
    assert disagreements(objects) == []
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    assert [c["name"] for c in pod["initContainers"]] == [*(["pull-models"] if way == "store" else []), "check-digests"]
    # Only what pulls may write, and only what pulls may leave the cluster.
    writers = [
        c["name"]
        for c in (*pod["initContainers"], *pod["containers"])
        if not next(m for m in c["volumeMounts"] if m["name"] == "models").get("readOnly")
    ]
    assert writers == (["pull-models"] if way == "store" else [])
    assert bool(one(objects, "NetworkPolicy")["spec"]["egress"]) == (way == "store")


def _args(objects: Objects, old: str, new: str) -> None:
    container = server(objects)
    assert any(old in flag for flag in container["args"])
    container["args"] = [flag.replace(old, new) for flag in container["args"]]


def _monitor(objects: Objects) -> Any:
    return one(objects, "PodMonitor")["spec"]


def _runtime(objects: Objects) -> Any:
    return one(objects, "ServingRuntime")["spec"]


def _pod(objects: Objects) -> Any:
    return one(objects, "Deployment")["spec"]["template"]


HPA = "HorizontalPodAutoscaler"
NAMED = "app.kubernetes.io/name"
BROKEN: list[tuple[str, Callable[[Objects], object], str]] = [
    ("cpu", lambda o: _args(o, "--http-port=8000", "--http-port=8080"), "the server's http port is 8080"),
    ("cpu", lambda o: _args(o, "=/models", "=/mnt"), "served from /mnt"),
    ("cpu", lambda o: _args(o, "exit-timeout-secs=30", "exit-timeout-secs=60"), "killed before"),
    ("cpu", lambda o: server(o)["readinessProbe"]["httpGet"].update(path="/v2/health/ready"), "readinessProbe"),
    ("cpu", lambda o: server(o)["startupProbe"]["httpGet"].update(port="web"), "asks the port web"),
    ("cpu", lambda o: server(o)["startupProbe"].update(failureThreshold=3), "less than a minute"),
    ("cpu", lambda o: server(o)["securityContext"].update(readOnlyRootFilesystem=False), "not locked down"),
    ("cpu", lambda o: server(o)["resources"].pop("limits"), "any memory"),
    ("cpu", lambda o: server(o).update(image="another:1"), "served by another:1"),
    ("cpu", lambda o: server(o)["volumeMounts"].pop(2), "nothing mounts the volume"),
    ("cpu", lambda o: server(o)["volumeMounts"][0].update(mountPath="/elsewhere"), "mounted"),
    ("cpu", lambda o: server(o)["volumeMounts"][1].update(subPath="config.pb"), "mounts config.pb"),
    ("cpu", lambda o: one(o, "ConfigMap")["metadata"].update(name="other"), "there is no ConfigMap"),
    ("cpu", lambda o: one(o, "ConfigMap")["data"].update({"models.sha256": ""}), "has no digest"),
    ("cpu", lambda o: one(o, "ConfigMap")["data"].pop("check.sh"), "runs check.sh"),
    ("cpu", lambda o: one(o, "Service", "-grpc")["spec"]["selector"].update(x="y"), "selects no pod"),
    ("cpu", lambda o: one(o, "Service", "-metrics")["spec"]["ports"][0].update(port=8003), "sends 8003"),
    ("cpu", lambda o: one(o, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].update(x="y"), "selects no pod"),
    ("cpu", lambda o: one(o, "NetworkPolicy")["spec"]["ingress"].pop(), "lets in"),
    ("cpu", lambda o: one(o, "NetworkPolicy")["metadata"].update(namespace="x"), "the namespaces are"),
    ("cpu", lambda o: _pod(o)["metadata"]["annotations"].update({"deployctl/version": "digits:2"}), "not annotated"),
    ("cpu", lambda o: _pod(o)["spec"]["initContainers"].reverse(), "between the check"),
    ("cpu", lambda o: _pod(o)["spec"]["initContainers"][1]["command"].__setitem__(-1, "2"), "is checked"),
    ("cpu", lambda o: _pod(o)["spec"]["initContainers"][0]["args"].__setitem__(3, "/pulled"), "not inside of a volume"),
    ("autoscale", lambda o: one(o, "Deployment")["spec"].update(replicas=2), "both say"),
    ("autoscale", lambda o: one(o, HPA)["spec"]["scaleTargetRef"].update(name="x"), "scales x"),
    ("autoscale", lambda o: one(o, HPA)["spec"]["metrics"][0]["pods"]["metric"].update(name="x"), "reads x"),
    ("autoscale", lambda o: _monitor(o).update(jobLabel="app"), "no label app"),
    ("autoscale", lambda o: _monitor(o)["podMetricsEndpoints"][0].update(port="x"), "scrapes the port x"),
    ("autoscale", lambda o: _pod(o)["metadata"]["labels"].update({NAMED: "x"}), "no series has the job"),
    ("autoscale-keda", lambda o: one(o, "ScaledObject")["spec"]["scaleTargetRef"].update(name="x"), "scales x"),
    ("canary-autoscale", lambda o: one(o, HPA)["spec"]["scaleTargetRef"].update(kind="Deployment"), "a Rollout has"),
    ("canary-autoscale", lambda o: one(o, "Rollout")["spec"].update(replicas=2), "the Rollout both say"),
    ("canary", lambda o: one(o, "Rollout")["spec"]["workloadRef"].update(name="x"), "refers to x"),
    ("canary", lambda o: one(o, "Rollout")["spec"]["strategy"]["canary"].update(canaryService="x"), "no Service x"),
    ("canary", lambda o: one(o, "AnalysisTemplate", "-slo")["metadata"].update(name="x"), "no AnalysisTemplate"),
    ("canary", lambda o: one(o, "AnalysisTemplate", "-canary")["spec"].pop("args"), "declares set()"),
    ("canary", lambda o: _monitor(o).update(podTargetLabels=[]), "no series has the label"),
    ("canary", lambda o: one(o, "Service", "-canary")["spec"]["ports"].pop(), "the check asks"),
]  # fmt: skip


@pytest.mark.parametrize(("overlay", "break_it", "words"), BROKEN, ids=[words for _, _, words in BROKEN])
def test_objects_that_disagree_are_found(
    overlay: str, break_it: Callable[[Objects], object], words: str, built: dict[str, Objects]
) -> None:
    objects = copy.deepcopy(built[f"cpu/overlays/{overlay}"])
    break_it(objects)
    assert words in "\n".join(disagreements(objects))


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda o: one(o, "InferenceService")["spec"]["predictor"]["model"].update(runtime="x"), "no ServingRuntime x"),
        (lambda o: one(o, "ServingRuntime")["spec"].update(supportedModelFormats=[]), "does not take"),
        (lambda o: one(o, "ServingRuntime")["spec"]["containers"][0]["ports"][0].update(containerPort=80), "http port"),
        (
            lambda o: one(o, "ServingRuntime")["spec"]["containers"][0]["command"].__setitem__(2, "x"),
            "another repository",
        ),
    ],
)
def test_kserve_objects_that_disagree_are_found(
    break_it: Callable[[Objects], object], words: str, built: dict[str, Objects]
) -> None:
    objects = copy.deepcopy(built["cpu/kserve"])
    break_it(objects)
    assert words in "\n".join(disagreements(objects))


def test_one_image_serves_everywhere(built: dict[str, Objects]) -> None:
    """The digest that was asked for is kept, and nothing runs another server."""
    for name in ("cpu", "gpu"):
        image = example(name).plan.image
        text = "\n".join(
            yaml.safe_dump(o) for key, objects in built.items() if key.startswith(f"{name}/") for o in objects
        )
        servers = {
            line.split("image: ")[1] for line in text.splitlines() if "image: " in line and "packager" not in line
        }
        assert servers == {image}
    assert "@sha256:" in image


def test_a_gpu_pod_has_one_gpu_of_the_kind_that_was_packaged_for(built: dict[str, Objects]) -> None:
    for overlay in ("gpu", "autoscale", "canary"):
        pod = one(built[f"gpu/overlays/{overlay}"], "Deployment")["spec"]["template"]["spec"]
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        labels = {key: value for key, value in pod["nodeSelector"].items() if key.startswith("nvidia")}
        assert labels == {"nvidia.com/gpu.compute.major": "9", "nvidia.com/gpu.compute.minor": "0"}
        assert "--allow-gpu-metrics=true" in pod["containers"][0]["args"]
    cpu = one(built["cpu/overlays/cpu"], "Deployment")["spec"]["template"]["spec"]
    assert "nvidia.com" not in yaml.safe_dump(cpu)
