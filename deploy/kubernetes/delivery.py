"""Three ways to bring a version to pods whose image does not hold it, as kustomize components.

Owns volumes, the container that pulls, and what network that needs. Whatever the way, the digests are checked by the
base's own container before the server starts. Called by render.
"""

from deploy.kubernetes.plan import MODELS, Plan
from deploy.kubernetes.pod import LOCKED, TMP, Object, resources
from deploy.kubernetes.request import Source, Way
from deploy.kubernetes.sizing import quantity

PULL = "pull-models"

COMPONENTS: dict[Way, str] = {"image": "models-from-image", "claim": "models-from-claim", "store": "models-from-store"}
"""What the component of each way is called."""

_PULLED, _INSIDE = "/pulled", "models"
# Where a JSON patch adds: to the end of a list, or to its beginning.
_POD = "/spec/template/spec"


def component(plan: Plan, source: Source) -> list[Object]:
    """The patches of a component, as kustomize reads them: the Deployment's, and the NetworkPolicy's if pods pull."""
    patches = [{"target": {"kind": "Deployment", "name": plan.name}, "patch": deployment_patch(plan, source)}]
    if source.way == "store":
        patches.append({"target": {"kind": "NetworkPolicy", "name": plan.name}, "patch": _EGRESS})
    return patches


def deployment_patch(plan: Plan, source: Source) -> list[Object]:
    """The operations that mount the repository in both containers, and pull it before either where it is pulled."""
    mount = models_mount(source)
    patch = [
        _add(f"{_POD}/volumes/-", models_volume(plan, source)),
        # Mounted before the config, which lies inside.
        _add(f"{_POD}/containers/0/volumeMounts/0", mount),
        _add(f"{_POD}/initContainers/0/volumeMounts/0", mount),
    ]
    if source.way == "store":
        patch.append(_add(f"{_POD}/initContainers/0", pull_container(plan, source)))
    return patch


def models_volume(plan: Plan, source: Source) -> Object:
    """The volume that holds the repository."""
    if source.way == "image":
        return {"name": "models", "image": {"reference": source.place, "pullPolicy": "IfNotPresent"}}
    if source.way == "claim":
        return {"name": "models", "persistentVolumeClaim": {"claimName": source.claim[0], "readOnly": True}}
    return {"name": "models", "emptyDir": {"sizeLimit": quantity(plan.sizes.models)}}


def models_mount(source: Source) -> Object:
    """Where the repository is mounted to be read, at its place inside the volume."""
    inside = {"image": "", "claim": source.place.partition("/")[2], "store": _INSIDE}[source.way]
    return {"name": "models", "mountPath": MODELS, **({"subPath": inside} if inside else {}), "readOnly": True}


def pull_container(plan: Plan, source: Source) -> Object:
    """The container that pulls the version with deployctl, which finds a broken download by the digests too."""
    return {
        "name": PULL,
        "image": plan.request.tool_image,
        "command": ["deployctl"],
        "args": pull_arguments(plan, source),
        # Its cache and its temporary files.
        "env": [{"name": "HOME", "value": TMP}],
        "resources": resources(plan),
        "securityContext": LOCKED,
        # The repository is a folder inside: pulling ends with a rename from beside it, which a mount point cannot take.
        "volumeMounts": [{"name": "models", "mountPath": _PULLED}, {"name": "tmp", "mountPath": TMP}],
    }


def pull_arguments(plan: Plan, source: Source) -> list[str]:
    """The command line of the pull, without the program: this very version, and no other under its number."""
    return ["pull", source.place, str(plan.version), f"{_PULLED}/{_INSIDE}", "--digest", plan.model.digest]


def _add(path: str, value: Object) -> Object:
    return {"op": "add", "path": path, "value": value}


# Names are looked up, and stores answer on the port of HTTPS, wherever they are.
_EGRESS: list[Object] = [
    {
        "op": "add",
        "path": "/spec/egress/-",
        "value": {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]},
    },
    {"op": "add", "path": "/spec/egress/-", "value": {"ports": [{"protocol": "TCP", "port": 443}]}},
]
