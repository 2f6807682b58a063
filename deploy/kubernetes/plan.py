"""One version and a request become a plan: every name, number, flag and file that the manifests share, said once.

Owns where each value comes from. Called by render; the modules that make objects read it and decide nothing.
"""

from dataclasses import dataclass

from deploy.containers.served import ServedModel, served_model
from deploy.errors import UsageError
from deploy.evidence import ServedEvidence
from deploy.kubernetes.request import KubernetesRequest, object_name
from deploy.kubernetes.sizing import Sizes, sizes
from deploy.latency_evidence import EAGER, LatencyEvidence
from deploy.monitoring.export import latency_export, measure_for
from deploy.monitoring.objective import Objective
from deploy.monitoring.queries import Labels
from deploy.monitoring.rules import RuleOptions
from deploy.report.findings import LATENCY_FILE, SERVED_FILE
from deploy.repository.attest import attestations
from deploy.repository.find import read_manifest
from deploy.repository.layout import Version
from deploy.serve.flags import Production, production_flags
from deploy.slo.records import SloEvidence
from deploy.targets import Target, find_target

MODELS = "/models"
UID = 1000
PRESTOP_SECONDS = 10
_EXIT_MARGIN_SECONDS = 20
# Clients of a headless Service learn of new servers when they connect again.
_GRPC_CONNECTION_SECONDS = 300
# Requests wait when a server nears its limit: replicas are added while most of the bound is still left.
_QUEUE_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What all manifests of one rendering agree on. `queue_microseconds` is None where nothing says how long is long.

    `rate` is that of the SLO check in queries per second, None where no rate is known.
    """

    request: KubernetesRequest
    model: ServedModel
    target: Target
    name: str
    image: str
    sizes: Sizes
    line: Production
    rules: RuleOptions
    rate: float | None
    queue_microseconds: int | None
    queue_basis: str

    @property
    def version(self) -> Version:
        """The version that is served."""
        return self.model.version

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What is promised."""
        return self.request.objectives

    @property
    def gpu(self) -> bool:
        """Whether a pod has a GPU."""
        return self.target.device == "cuda"

    @property
    def selector(self) -> dict[str, str]:
        """The labels that find the pods, whatever version they serve."""
        return {"app.kubernetes.io/name": self.name, "app.kubernetes.io/component": "inference"}

    @property
    def labels(self) -> dict[str, str]:
        """The labels of every object."""
        return {**self.selector, "app.kubernetes.io/version": str(self.version.number)}

    @property
    def flags(self) -> tuple[str, ...]:
        """The server's command line, without the executable."""
        return production_flags(self.line)

    @property
    def ready_path(self) -> str:
        """Where the server says whether it answers for this very version, which a server without models never does."""
        return f"/v2/models/{self.version.name}/versions/{self.version.number}/ready"

    @property
    def grace_seconds(self) -> int:
        """How long a pod may take to end: it waits until no request is sent to it, and ends those that run."""
        return PRESTOP_SECONDS + self.line.exit_seconds + _EXIT_MARGIN_SECONDS


def make_plan(request: KubernetesRequest) -> Plan:
    """The plan for a request.

    Raises UsageError if the version is not what was published or not to be released, if its target has no image or
    cannot run it, or if something asked for has no work to do.
    """
    target = _target(request)
    measure = measure_for(histograms=target.latency_histograms)
    model = served_model(request.version, target, objectives=request.objectives, measure=measure)
    _check_whole(model)
    served, latency = _evidence(request.version)
    level, quantiles = latency_export(request.objectives, measure=measure)
    name = object_name(request.version.name, request.name)
    pulled = any(source.way == "store" for source in request.sources)
    queue, queue_basis = _queue(model, request.objectives, latency)
    return Plan(
        request=request,
        model=model,
        target=target,
        name=name,
        image=_image(request, target),
        sizes=sizes(model, target, served=served, latency=latency, pulled=pulled),
        line=Production(
            repository=MODELS,
            gpu=target.device == "cuda",
            latency=level,
            quantiles=quantiles,
            grpc_connection_seconds=_GRPC_CONNECTION_SECONDS,
        ),
        rules=RuleOptions(scope=_scope(request, name), measure=measure),
        rate=request.rate or _attested_rate(request.version),
        queue_microseconds=queue,
        queue_basis=queue_basis,
    )


def _check_whole(model: ServedModel) -> None:
    """A pod serves one model, which an ensemble is not, nor a step of one by itself."""
    if model.manifest.format not in ("ensemble", "python"):
        return
    what = "an ensemble" if model.manifest.steps else "a step of an ensemble"
    raise UsageError(
        f"{model.version} is {what}, and the manifests are for one model",
        expected="a version that is served alone",
        fix="render an ensemble's image with `deployctl docker`, or name the network and decode in the client",
    )


def _target(request: KubernetesRequest) -> Target:
    packaged_for = read_manifest(request.version).target
    target = find_target(request.target or packaged_for.name)
    if target.device != packaged_for.device:
        raise UsageError(
            f"{request.version} was packaged for {packaged_for.name}, and its config runs it on {packaged_for.device}",
            expected=f"a target on {packaged_for.device}",
            fix=f"package the checkpoint with --target {target.name}, or name another target",
        )
    return target


def _image(request: KubernetesRequest, target: Target) -> str:
    if request.image is not None:
        return request.image
    if target.container is None:
        raise UsageError(
            f"target {target.name} has no image to serve with",
            expected="the release that will serve, such as 26.08-cpu",
            fix="name it with --target, or an image with --image",
        )
    return target.container


def _scope(request: KubernetesRequest, name: str) -> Labels:
    """The labels that Prometheus gives to the series of these pods, see the PodMonitor."""
    namespace = (("namespace", request.namespace),) if request.namespace else ()
    return (("job", name), *namespace)


def _evidence(version: Version) -> tuple[ServedEvidence | None, LatencyEvidence | None]:
    served, latency = version.evidence / SERVED_FILE, version.evidence / LATENCY_FILE
    return (
        ServedEvidence.read(served) if served.is_file() else None,
        LatencyEvidence.read(latency) if latency.is_file() else None,
    )


def _attested_rate(version: Version) -> float | None:
    """The rate of the newest load run that passed, whose bounds are promised; else of the newest that proved something.

    One that was tried in vain is no rate at which anything is kept.
    """
    newest = None
    for attestation in reversed(attestations(version)):
        if attestation.kind == "slo":
            evidence = SloEvidence.read(attestation.path)
            if evidence.invalid is None:
                if evidence.judgement.passed:
                    return evidence.rate
                newest = newest or evidence.rate
    return newest


def _queue(
    model: ServedModel, objectives: tuple[Objective, ...], latency: LatencyEvidence | None
) -> tuple[int | None, str]:
    """How long requests may wait on average before a replica is added, in microseconds, and why so long."""
    bounds = [objective.bound_ms for objective in objectives if objective.bound_ms is not None]
    if bounds:
        return round(min(bounds) * _QUEUE_SHARE * 1000), f"a quarter of the bound of {min(bounds):g} ms"
    cells = latency.cells if latency else ()
    found = [
        cell.p50.value for cell in cells if cell.contender == model.manifest.format and cell.batch == 1 and cell.p50
    ]
    if found:
        return round(found[0] * 1000), f"as long as one row was computed, {found[0]:.3g} ms at the median"
    return None, f"no bound is known, and no latency beside that of {EAGER} was measured"
