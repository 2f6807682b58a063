"""Served parity: a real tritonserver's answers, judged by the budgets that the artifact itself was judged by.

Owns the evidence and what served it; how the server is asked is in `asking`. Called by package and verify.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.convert.model import Format
from deploy.evidence import Judgement, ServedCheck, ServedEvidence
from deploy.repository.layout import Version
from deploy.repository.protobuf import parse_config
from deploy.serve.asking import Asking, ServedModel
from deploy.serve.client import PROTOCOLS, Client, Statistics
from deploy.serve.engines import Engine
from deploy.serve.local import config_difference
from deploy.serve.memory import peak_memory
from deploy.serve.parameters import DEVICE_PARAMETER
from deploy.serve.server import ServerOptions, TritonServer
from deploy.serve.serving import serving
from deploy.targets import all_targets
from deploy.validate.baseline import Baseline
from deploy.validate.machine import installed_versions

_RUNTIMES: dict[Format, str] = {"onnx": "onnxruntime", "aoti": "torch", "torchscript": "torch"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedQuestion:
    """What the answers are judged by. `classes` are what each index means, as the checkpoint says."""

    baseline: Baseline
    format: Format
    classes: tuple[str, ...] | None = None


def check_served(version: Version, engine: Engine, question: ServedQuestion, *, staged: bool = False) -> ServedEvidence:
    """Serve a version, published or `staged`, in a server of its own that sees nothing else, and judge its answers.

    Raises UsageError if a published one has changed, ServerFailed, with the server's own reason, if it does not get
    ready.
    """
    with serving([version], engine=engine, options=ServerOptions(end_at_once=True), staged=staged) as server:
        return ask_server(server, version, question)


def ask_server(server: TritonServer, version: Version, question: ServedQuestion) -> ServedEvidence:
    """The evidence for a version that the running `server` serves. A refused request is a failed check."""
    config = parse_config(version.config.read_text())
    model = ServedModel(version=version, config=config, classes=question.classes)
    checks: list[ServedCheck] = []
    total = Statistics(requests=0, inferences=0, executions=0)
    for protocol in PROTOCOLS:
        address = server.grpc_address if protocol == "grpc" else server.http_address
        with Client(protocol, address) as client:
            served_by = client.server_version()
            asking = Asking(model=model, baseline=question.baseline, client=client)
            merged, counted = asking.at_once()
            checks += [asking.one_by_one(), merged, *(check() for check in asking.where_possible())]
            total = total.plus(counted)
    difference = config_difference(version, server.engine)
    return ServedEvidence(
        judgement=_judgement(checks, total, merges=model.merges),
        mode=server.engine.mode,
        engine=f"tritonserver {served_by} ({server.engine.kind})",
        release=release_of(served_by, server.engine),
        backend=_backend(config.backend, question.format, server.engine, device=_device(difference)),
        config_difference=difference,
        checks=tuple(checks),
        executions=total.executions,
        inferences=total.inferences,
        ready_seconds=server.ready_seconds,
        peak_memory=peak_memory(server.pid),
    )


def _judgement(checks: Sequence[ServedCheck], counted: Statistics, *, merges: bool) -> Judgement:
    """The first check that did not pass, else whether requests were merged at all: that is how it will be served."""
    for check in checks:
        if not check.judgement.passed:
            reason = f"{check.name} over {check.protocol}: {check.judgement.reason}"
            return Judgement(verdict=check.judgement.verdict, reason=reason)
    if merges and counted.executions >= counted.inferences:
        reason = f"the server merged none of {counted.inferences} concurrent requests, so that merging is not proven"
        return Judgement.undecided(reason)
    rows = sum(check.rows for check in checks)
    return Judgement.yes(f"{rows} rows in {len(checks)} ways of asking, all within the budget")


def release_of(server_version: str, engine: Engine) -> str:
    """The Triton release (`YY.MM`) whose server calls itself so, as far as is known."""
    releases = {target.server_version: target.triton for target in all_targets().values()}
    return releases.get(server_version) or engine.release


def _device(difference: Sequence[str]) -> str:
    """Where the adapted config makes the model run."""
    return "cuda" if any(DEVICE_PARAMETER in line for line in difference) else "cpu"


def _backend(name: str, format_: Format, engine: Engine, *, device: str) -> str:
    """The backend, and what really executes the artifact where that is this environment's own runtime."""
    if engine.kind == "native":
        return name
    runtime = _RUNTIMES[format_]
    where = "" if device == "cpu" else f" on {device}"
    return f"{name} (python-based, {runtime} {installed_versions([runtime])[runtime]}{where})"
