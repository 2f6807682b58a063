"""What is asked of the rendering: one version, where it comes from in the cluster, and what a manifest cannot know.

Owns these values and their refusals. Called by the command `k8s` and by plan.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from deploy.errors import UsageError
from deploy.monitoring.objective import Objective
from deploy.repository.layout import Version

Way = Literal["image", "claim", "store"]
"""How a version reaches a pod: an image that is mounted, a volume claim, or an object store it is pulled from."""

PROMETHEUS = "http://prometheus-operated.monitoring.svc:9090"

_STORES = ("s3", "gs", "gcs", "az", "abfs", "oci")
_LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_IMAGE = re.compile(r"[a-z0-9]([a-zA-Z0-9._/:-]*[a-zA-Z0-9])?(@sha256:[0-9a-f]{64})?")
# Room for the longest suffix, a dash and a number, in the 63 characters of a label.
_LONGEST_NAME = 40
_LONGEST_LABEL = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a pod gets the repository from. `place` is an image, a claim with an optional path, or a store's URL."""

    way: Way
    place: str

    @classmethod
    def parse(cls, text: str) -> "Source":
        """`image://REF`, `pvc://CLAIM[/PATH]`, or the URL of a store. Raises UsageError if it is none of these."""
        scheme, separator, place = text.partition("://")
        if separator and place and scheme == "image":
            return cls(way="image", place=check_image(place, "--models"))
        if separator and place and scheme == "pvc":
            claim, _, path = place.partition("/")
            check_label(claim, "the claim of --models")
            if ".." in path.split("/"):
                raise UsageError(f"the path of --models is {path!r}", expected="a path inside of the volume")
            return cls(way="claim", place=place.rstrip("/"))
        if separator and place and scheme in _STORES:
            if urlsplit(text).username or urlsplit(text).password:
                raise UsageError(
                    "--models holds credentials, which a manifest is no place for",
                    expected="a URL without them",
                    fix="let the pods have them by a workload identity or a Secret (docs/kubernetes.md)",
                )
            return cls(way="store", place=text)
        raise UsageError(
            f"--models is {text!r}",
            expected=f"image://REF, pvc://CLAIM[/PATH], or a store: {', '.join(f'{name}://' for name in _STORES)}",
        )

    @property
    def claim(self) -> tuple[str, str]:
        """The claim's name, and the path of the repository inside of it; empty at its top."""
        name, _, path = self.place.partition("/")
        return name, path


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesRequest:
    """What is rendered. None is decided from the version, or left to whoever applies the manifests.

    `image` holds the version unless `sources` say where else it comes from; the first of them is used, each further
    one is rendered beside it. `tool_image` holds deployctl. `rate` is in queries per second.
    """

    version: Version
    image: str | None = None
    sources: tuple[Source, ...] = ()
    tool_image: str | None = None
    target: str | None = None
    namespace: str | None = None
    name: str | None = None
    replicas: int = 2
    prometheus: str = PROMETHEUS
    objectives: tuple[Objective, ...] = ()
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.image is None and not self.sources:
            raise UsageError(
                f"nothing says where a server finds {self.version}",
                expected="--image with the version inside, or --models",
                fix="build the image that `deployctl docker` renders, or give --models s3://BUCKET/models",
            )
        for image, option in ((self.image, "--image"), (self.tool_image, "--tool-image")):
            if image is not None:
                check_image(image, option)
        if self.namespace is not None:
            check_label(self.namespace, "--namespace")
        ways = [source.way for source in self.sources]
        if len(set(ways)) < len(ways):
            raise UsageError(f"--models was given twice for one way: {', '.join(ways)}", expected="each way once")
        if "store" in ways and self.tool_image is None:
            raise UsageError(
                "pods that pull need an image with deployctl in it",
                expected="--tool-image",
                fix="build packager.Dockerfile, which `deployctl docker` renders",
            )
        if self.replicas < 1:
            raise UsageError(f"--replicas is {self.replicas}", expected="1 or more")
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0):
            raise UsageError(f"--rate is {self.rate:g}", expected="queries per second, above 0")
        check_prometheus(self.prometheus)


def object_name(model: str, chosen: str | None) -> str:
    """What the objects are called: the name asked for, or the model's in small letters and hyphens.

    Raises UsageError if it cannot be the name of a Service.
    """
    name = chosen or re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    if not _LABEL.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise UsageError(
            f"{name!r} cannot name the objects of {model}",
            expected=f"a small letter, then small letters, digits and hyphens, {_LONGEST_NAME} at most",
            fix="choose one with --name",
        )
    return name


def check_label(text: str, what: str) -> str:
    """The text itself. Raises UsageError if it is no name that Kubernetes takes for a namespace or a claim."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", text) or len(text) > _LONGEST_LABEL:
        raise UsageError(f"{what} is {text!r}", expected="small letters, digits and hyphens, 63 at most")
    return text


def check_image(text: str, option: str) -> str:
    """The reference itself. Raises UsageError if it is none, or its tag may mean another image tomorrow."""
    if not _IMAGE.fullmatch(text):
        raise UsageError(f"{option} is {text!r}", expected="an image such as registry.example.com/pets-server:1")
    tag = text.partition("@")[0].rpartition("/")[2].partition(":")[2]
    if "@" not in text and tag in ("", "latest"):
        raise UsageError(
            f"{option} is {text!r}, which may be another image tomorrow",
            expected="a tag that stays, or a digest: NAME@sha256:...",
        )
    return text


def check_prometheus(text: str) -> str:
    """The address itself. Raises UsageError if it is no http address."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise UsageError(f"--prometheus is {text!r}", expected=f"an address such as {PROMETHEUS}")
    return text


def prometheus_namespace(address: str) -> str | None:
    """The namespace of `http://SERVICE.NAMESPACE.svc...`; None where the address does not say."""
    parts = (urlsplit(address).hostname or "").split(".")
    return parts[1] if len(parts) >= 3 and parts[2] == "svc" else None
