"""Served parity of an ensemble: a real tritonserver with its steps and it, asked with whole inputs and damaged ones.

Owns the evidence; the checks are `proof`'s. Called by whole with a stage, and by verify with a published version.
"""

from collections.abc import Sequence

from deploy.ensemble.inputs import Kind
from deploy.ensemble.proof import Asked, ask_ensemble, ask_whole
from deploy.evidence import Judgement, ServedCheck, ServedEvidence, Verdict
from deploy.repository.layout import Version
from deploy.serve.client import Client, ModelAddress
from deploy.serve.engines import Engine
from deploy.serve.local import config_difference
from deploy.serve.memory import peak_memory
from deploy.serve.parity import release_of
from deploy.serve.serving import serving, with_steps


def check_ensemble(
    versions: Sequence[Version], engine: Engine, asked: Asked, *, staged: bool = False
) -> ServedEvidence:
    """The evidence for an ensemble, the last of `versions`, which hold its steps too.

    Raises UsageError if a published one has changed, ServerFailed if the server does not get ready.
    """
    ensemble = versions[-1]
    address = ModelAddress(name=ensemble.name, version=ensemble.number, outputs=asked.question.outputs)
    with serving(versions, engine=engine, staged=staged) as server:
        checks = ask_ensemble(server, address, asked)
        with Client("grpc", server.grpc_address) as client:
            counted, served_by = client.statistics(address), client.server_version()
        differences = [f"{version.name}: {line}" for version in versions for line in config_difference(version, engine)]
        return ServedEvidence(
            judgement=_judgement(checks, asked.question.kind),
            mode=engine.mode,
            engine=f"tritonserver {served_by} ({engine.kind})",
            release=release_of(served_by, engine),
            backend=f"ensemble of {', '.join(str(version) for version in versions[:-1])}",
            config_difference=tuple(differences),
            checks=checks,
            executions=counted.executions,
            inferences=counted.inferences,
            ready_seconds=server.ready_seconds,
            peak_memory=peak_memory(server.pid),
        )


def check_published(version: Version, engine: Engine) -> ServedEvidence:
    """The evidence for a published ensemble, asked as it was when it was packaged. Raises as `check_ensemble` does."""
    steps = [one for one in with_steps([version]) if one != version]
    return check_ensemble([*steps, version], engine, Asked.load(version.evidence))


def ask_again(version: Version, client: Client) -> Judgement:
    """Whether a running server answers for a published ensemble's whole inputs as it did when it was proven."""
    asked = Asked.load(version.evidence)
    address = ModelAddress(name=version.name, version=version.number, outputs=asked.question.outputs)
    return ask_whole(client, address, asked).judgement


def _judgement(checks: Sequence[ServedCheck], kind: Kind) -> Judgement:
    for check in checks:
        if not check.judgement.passed:
            reason = f"{check.name} over {check.protocol}: {check.judgement.reason}"
            return Judgement(verdict=Verdict.FAIL, reason=reason)
    rows = sum(check.rows for check in checks)
    reason = f"{rows} {kind}s in {len(checks)} ways of asking, answers and refusals as they should be"
    return Judgement(verdict=Verdict.PASS, reason=reason)
