"""What must be the same in several objects of one build, and is not: names, selectors, ports, paths, flags, images.

Owns `disagreements`; an empty list means that everything fits. A new kind of object needs its rule here.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from deploy.kubernetes.pod import CHECK, SERVER
from deploy.kubernetes.watching import HASH_LABEL
from deploy.repository.protobuf import parse_config

Object = dict[str, Any]
Objects = list[Object]

_POD_KINDS = ("Deployment", "Job")


def disagreements(objects: Objects) -> list[str]:
    """One sentence for each thing that does not fit."""
    rules = (_namespaces, _services, _selectors, _pods, _servers, _network, _scaling, _rollouts, _checks, _kserve)
    return [sentence for rule in rules for sentence in rule(objects)]


def one(objects: Objects, kind: str, suffix: str = "") -> Object:
    """The only object of a kind whose name ends so."""
    found = [o for o in objects if o["kind"] == kind and o["metadata"]["name"].endswith(suffix)]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}"
    return found[0]


def flags(container: Object) -> dict[str, str]:
    """The server's flags by name; one that is given more than once has its last value."""
    return {name.removeprefix("--"): value for name, _, value in (flag.partition("=") for flag in container["args"])}


def _of(objects: Objects, *kinds: str) -> Iterator[Object]:
    return (o for o in objects if o["kind"] in kinds)


def _named(objects: Objects, kind: str) -> dict[str, Object]:
    return {o["metadata"]["name"]: o for o in _of(objects, kind)}


def _pod_labels(objects: Objects) -> dict[str, str]:
    labels = [o["spec"]["template"]["metadata"]["labels"] for o in _of(objects, "Deployment")]
    return labels[0] if labels else {}


def _ports(objects: Objects) -> dict[str, int]:
    found = [o["spec"]["template"]["spec"]["containers"][0]["ports"] for o in _of(objects, "Deployment")]
    return {port["name"]: port["containerPort"] for port in (found[0] if found else [])}


def _namespaces(objects: Objects) -> Iterator[str]:
    found = {str(o["metadata"].get("namespace")) for o in objects}
    if len(found) > 1:
        yield f"the namespaces are {sorted(found)}"


def _services(objects: Objects) -> Iterator[str]:
    labels, ports = _pod_labels(objects), _ports(objects)
    for service in _of(objects, "Service"):
        name = service["metadata"]["name"]
        if not service["spec"]["selector"].items() <= labels.items():
            yield f"Service {name} selects no pod"
        for port in service["spec"]["ports"]:
            if ports.get(port["targetPort"]) != port["port"]:
                yield f"Service {name} sends {port['port']} to {port['targetPort']}"


def _selectors(objects: Objects) -> Iterator[str]:
    labels = _pod_labels(objects)
    for o in _of(objects, "Deployment", "PodDisruptionBudget", "PodMonitor"):
        if not o["spec"]["selector"]["matchLabels"].items() <= labels.items():
            yield f"{o['kind']} {o['metadata']['name']} selects no pod"
    for o in _of(objects, "Deployment"):
        for spread in o["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            if spread["labelSelector"]["matchLabels"] != o["spec"]["selector"]["matchLabels"]:
                yield f"pods are spread by other labels over {spread['topologyKey']}"
    for o in _of(objects, "PodMonitor"):
        for endpoint in o["spec"]["podMetricsEndpoints"]:
            if endpoint["port"] not in _ports(objects):
                yield f"PodMonitor scrapes the port {endpoint['port']}"
        if o["spec"]["jobLabel"] not in labels:
            yield f"the pods have no label {o['spec']['jobLabel']}, which names the job"
        job = labels.get(o["spec"]["jobLabel"])
        for expression in _expressions(objects):
            if f'job="{job}"' not in expression and "triton_slo" not in expression and "<<" not in expression:
                yield f"no series has the job of {expression}"


def _expressions(objects: Objects) -> Iterator[str]:
    """Every PromQL expression that reads what the PodMonitor scrapes."""
    for o in _of(objects, "PrometheusRule"):
        yield from (rule["expr"] for group in o["spec"]["groups"] for rule in group["rules"])
    for o in _of(objects, "ScaledObject"):
        yield from (trigger["metadata"]["query"] for trigger in o["spec"]["triggers"])
    for o in _of(objects, "AnalysisTemplate"):
        providers = (metric["provider"] for metric in o["spec"]["metrics"])
        yield from (provider["prometheus"]["query"] for provider in providers if "prometheus" in provider)


def _pod_specs(objects: Objects) -> Iterator[Object]:
    yield from (o["spec"]["template"]["spec"] for o in _of(objects, *_POD_KINDS))
    for o in _of(objects, "AnalysisTemplate"):
        for metric in o["spec"]["metrics"]:
            if "job" in metric["provider"]:
                yield metric["provider"]["job"]["spec"]["template"]["spec"]
    yield from (o["spec"] for o in _of(objects, "ServingRuntime"))


def _pods(objects: Objects) -> Iterator[str]:
    for pod in _pod_specs(objects):
        containers = [*pod.get("initContainers", ()), *pod["containers"]]
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounted = {mount["name"] for container in containers for mount in container["volumeMounts"]}
        yield from (f"nothing mounts the volume {name}" for name in sorted(volumes - mounted))
        yield from (f"there is no volume {name}" for name in sorted(mounted - volumes))
        for volume in pod["volumes"]:
            if "configMap" in volume:
                yield from _config_map(objects, volume, containers)
        for container in containers:
            yield from _locked(container)
            yield from _pulling(container)


def _config_map(objects: Objects, volume: Object, containers: Objects) -> Iterator[str]:
    name = volume["configMap"]["name"]
    data = _named(objects, "ConfigMap").get(name, {}).get("data", {})
    if not data:
        yield f"there is no ConfigMap {name}"
    for container in containers:
        mounts = [mount for mount in container["volumeMounts"] if mount["name"] == volume["name"]]
        for mount in mounts:
            if "subPath" in mount and mount["subPath"] not in data:
                yield f"{container['name']} mounts {mount['subPath']}, which {name} lacks"
            for word in (*container.get("command", ()), *container.get("args", ())):
                for file in re.findall(rf"{re.escape(mount['mountPath'])}/(\S+)", word):
                    if file not in data:
                        yield f"{container['name']} runs {file}, which {name} lacks"


def _pulling(container: Object) -> Iterator[str]:
    """Pulling ends with a rename from beside the repository, which cannot be a mount point then."""
    words = container.get("args", ())
    if words[:1] == ["pull"]:
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        if not any(words[3].startswith(f"{mount}/") for mount in mounts):
            yield f"{container['name']} pulls to {words[3]}, which is not inside of a volume"


def _locked(container: Object) -> Iterator[str]:
    context = container["securityContext"]
    wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    if context != wanted:
        yield f"{container['name']} is not locked down"
    if "limits" not in container["resources"] or "memory" not in container["resources"]["limits"]:
        yield f"{container['name']} may take any memory"


def _servers(objects: Objects) -> Iterator[str]:
    for o in _of(objects, "Deployment"):
        pod = o["spec"]["template"]["spec"]
        server = next(c for c in pod["containers"] if c["name"] == SERVER)
        check = next(c for c in pod["initContainers"] if c["name"] == CHECK)
        ports = {port["name"]: port["containerPort"] for port in server["ports"]}
        yield from _server(server, ports)
        yield from _version(objects, o, server, check)
        exit_seconds = int(flags(server)["exit-timeout-secs"])
        wait = int(server["lifecycle"]["preStop"]["exec"]["command"][-1])
        if pod["terminationGracePeriodSeconds"] <= exit_seconds + wait:
            yield "pods are killed before their requests have ended"
        if check["image"] != server["image"]:
            yield f"the files are checked in {check['image']} and served by {server['image']}"
        if pod["initContainers"][-1]["name"] != CHECK:
            yield "something runs between the check of the files and the server"
        if _mount_of(check, "models") not in (None, _mount_of(server, "models")):
            yield "what is checked is mounted elsewhere than what is served"


def _server(server: Object, ports: dict[str, int]) -> Iterator[str]:
    said = flags(server)
    for name, port in ports.items():
        if said[f"{name}-port"] != str(port):
            yield f"the server's {name} port is {said[f'{name}-port']}, and the container's {port}"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if server[probe]["httpGet"]["port"] not in ports:
            yield f"the {probe} asks the port {server[probe]['httpGet']['port']}"
    if server["startupProbe"]["periodSeconds"] * server["startupProbe"]["failureThreshold"] < 60:
        yield "a start has less than a minute"
    mount = _mount_of(server, "models")
    if mount and mount["mountPath"] != said["model-repository"]:
        yield f"the repository is mounted at {mount['mountPath']}, and served from {said['model-repository']}"


def _version(objects: Objects, deployment: Object, server: Object, check: Object) -> Iterator[str]:
    """The probe, the check, the annotation and the config mean one version."""
    repository, _, model, number = check["command"][-4:]
    if repository != flags(server)["model-repository"]:
        yield f"{repository} is checked, and another repository served"
    ready = f"/v2/models/{model}/versions/{number}/ready"
    for probe in ("startupProbe", "readinessProbe"):
        if server[probe]["httpGet"]["path"] != ready:
            yield f"the {probe} asks {server[probe]['httpGet']['path']}, and {model}:{number} is checked"
    if deployment["spec"]["template"]["metadata"]["annotations"]["deployctl/version"] != f"{model}:{number}":
        yield f"the pods are not annotated as {model}:{number}"
    mount = next(m for m in server["volumeMounts"] if "subPath" in m and m["name"] == "config")
    if mount["mountPath"] != f"{repository}/{model}/config.pbtxt":
        yield f"the config is mounted at {mount['mountPath']}"
    name = next(v["configMap"]["name"] for v in deployment["spec"]["template"]["spec"]["volumes"] if "configMap" in v)
    yield from _listed(_named(objects, "ConfigMap").get(name, {}).get("data", {}), model, number)


def _listed(data: dict[str, str], model: str, number: str) -> Iterator[str]:
    if "config.pbtxt" not in data:
        return
    config = parse_config(data["config.pbtxt"])
    if config.name != model or list(config.version_policy.specific.versions) != [int(number)]:
        yield f"the config is not that of {model}:{number}"
    sums = {line.partition("  ")[2] for line in data["models.sha256"].splitlines()}
    needed = {f"{model}/{number}/{config.default_model_filename}"}
    needed |= {f"{model}/{output.label_filename}" for output in config.output if output.label_filename}
    inputs = [i for warmup in config.model_warmup for i in warmup.inputs.values()]
    needed |= {f"{model}/warmup/{i.input_data_file}" for i in inputs}
    yield from (f"{path} has no digest" for path in sorted(needed - sums))
    yield from (f"{path} is not in the list of paths" for path in sums if path not in data["models.paths"].splitlines())


def _mount_of(container: Object, volume: str) -> Object | None:
    found = [m for m in container["volumeMounts"] if m["name"] == volume]
    return {key: found[0].get(key) for key in ("mountPath", "subPath")} if found else None


def _network(objects: Objects) -> Iterator[str]:
    ports, labels = _ports(objects), _pod_labels(objects)
    for policy in _of(objects, "NetworkPolicy"):
        if not policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items():
            yield "the NetworkPolicy selects no pod"
        allowed = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        if allowed != set(ports.values()):
            yield f"the NetworkPolicy lets in {sorted(allowed)}, and the server listens at {sorted(ports.values())}"


def _scaling(objects: Objects) -> Iterator[str]:
    for o in _of(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        reference = o["spec"]["scaleTargetRef"]
        kind, name = reference["kind"], reference["name"]
        target = _named(objects, kind).get(name)
        if target is None:
            yield f"{o['kind']} scales {name}"
        elif "replicas" in target["spec"]:
            yield f"{o['kind']} and the {kind} both say how many replicas there are"
        if kind != "Rollout" and any(_of(objects, "Rollout")):
            yield f"{o['kind']} scales the {kind}, and a Rollout has the pods"
    for o in _of(objects, "HorizontalPodAutoscaler"):
        rule = yaml.safe_load(one(objects, "ConfigMap", "-prometheus-adapter-rule")["data"]["config.yaml"])["rules"][0]
        metric = o["spec"]["metrics"][0]["pods"]["metric"]["name"]
        if rule["name"]["as"] != metric:
            yield f"the adapter makes {rule['name']['as']}, and the autoscaler reads {metric}"


def _rollouts(objects: Objects) -> Iterator[str]:
    services, templates = _named(objects, "Service"), _named(objects, "AnalysisTemplate")
    for o in _of(objects, "Rollout"):
        target = _named(objects, "Deployment").get(o["spec"]["workloadRef"]["name"])
        if target is None:
            yield f"the Rollout refers to {o['spec']['workloadRef']['name']}"
        elif "replicas" in target["spec"]:
            yield "Rollout and Deployment both say how many replicas there are"
        canary = o["spec"]["strategy"]["canary"]
        for role in ("canaryService", "stableService"):
            if canary[role] not in services:
                yield f"there is no Service {canary[role]}"
        analyses = [canary["analysis"], *(step["analysis"] for step in canary["steps"] if "analysis" in step)]
        for analysis in analyses:
            given = {argument["name"] for argument in analysis.get("args", ())}
            for name in (template["templateName"] for template in analysis["templates"]):
                if name not in templates:
                    yield f"there is no AnalysisTemplate {name}"
                else:
                    yield from _arguments(templates[name], given)
    label = HASH_LABEL.replace("-", "_")
    monitored = [set(o["spec"]["podTargetLabels"]) for o in _of(objects, "PodMonitor")]
    if any(label in expression for expression in _expressions(objects)) and {HASH_LABEL} not in monitored:
        yield f"no series has the label {label}"


def _arguments(template: Object, given: set[str]) -> Iterator[str]:
    wanted = {argument["name"] for argument in template["spec"].get("args", ())}
    used = set(re.findall(r"\{\{args\.([\w-]+)\}\}", yaml.safe_dump(template["spec"], width=100_000)))
    if not used == wanted == given:
        yield f"{template['metadata']['name']} uses {used}, declares {wanted} and is given {given}"


def _checks(objects: Objects) -> Iterator[str]:
    """The check asks a Service that there is; alone it is applied beside what was applied before."""
    services = _named(objects, "Service")
    for pod in _pod_specs(objects):
        for container in pod["containers"]:
            words = container.get("args", ())
            if "--url" in words and services:
                name, _, port = words[words.index("--url") + 1].partition(":")
                ports = [p["port"] for p in services.get(name, {"spec": {"ports": []}})["spec"]["ports"]]
                if int(port) not in ports:
                    yield f"the check asks {name}:{port}"


def _kserve(objects: Objects) -> Iterator[str]:
    runtimes = _named(objects, "ServingRuntime")
    for o in _of(objects, "InferenceService"):
        model = o["spec"]["predictor"]["model"]
        runtime = runtimes.get(model["runtime"])
        if runtime is None:
            yield f"there is no ServingRuntime {model['runtime']}"
            continue
        if model["modelFormat"] not in runtime["spec"]["supportedModelFormats"]:
            yield f"the runtime does not take {model['modelFormat']}"
        server = runtime["spec"]["containers"][0]
        ports = {port["name"].replace("h2c", "grpc"): port["containerPort"] for port in server["ports"]}
        yield from _server(server, ports)
        if f" {flags(server)['model-repository']} " not in server["command"][2]:
            yield "another repository is checked than the one that is served"
