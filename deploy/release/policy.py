"""Whether a version meets what an environment demands, and what would have to be done where it does not.

Owns one rule per demand, but for those on attestations, which are in `attested`; changes nothing and loads nothing.
Called by promotion under a policy, in `promotion`.

Every demand is looked at, so that one answer names everything that is missing. An ensemble is compared by its
network, which holds the weights: a diff or bench of that is what is asked for.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime

from deploy.errors import DeployError
from deploy.evidence import Judgement, ServedEvidence
from deploy.release.attested import attested, too_old
from deploy.release.demand import Candidate, Demand
from deploy.release.policy_file import PromotionPolicy
from deploy.report.findings import SERVED_FILE

NATIVE = "served (native)"


def demands(policy: PromotionPolicy, candidate: Candidate) -> tuple[Demand, ...]:
    """Everything that the policy demands of the candidate, each with its verdict."""
    return tuple(_demands(policy, candidate))


def overall(found: Sequence[Demand]) -> Judgement:
    """Pass where every demand is met; else fail, naming those that are not."""
    unmet = [one.name for one in found if not one.judgement.passed]
    if unmet:
        return Judgement.no(f"not met: {', '.join(unmet)}")
    return Judgement.yes(f"{len(found)} demands are met")


def _demands(policy: PromotionPolicy, candidate: Candidate) -> Iterator[Demand]:
    again = "deployctl package CKPT"
    yield _simple("checks", candidate.manifest.blockers(), "every check of packaging passed", again)
    if not policy.allow_unsafe:
        unsafe = [f"{check} failed and was accepted as unsafe" for check in candidate.manifest.unsafe_accepted]
        yield _simple("nothing unsafe", unsafe, "nothing was accepted as unsafe", again)
    if policy.architecture == "confirmed":
        found = candidate.manifest.verdicts.architecture
        wrong = [] if found.passed else [found.reason]
        yield _simple("architecture", wrong, found.reason, f"{again} --samples FILE, with expected/<output> arrays")
    if policy.require_native:
        yield _native(candidate)
    if policy.targets and candidate.manifest.target.name not in policy.targets:
        said = f"it is built for {candidate.manifest.target.name}, not for {' or '.join(policy.targets)}"
        yield Demand(name="target", judgement=Judgement.no(said), command=f"{again} --target {policy.targets[0]}")
    if policy.max_evidence_age_days is not None:
        yield _evidence_age(candidate, policy.max_evidence_age_days, again)
    for kind in policy.require:
        if kind == "signature":
            yield _signature(candidate)
        elif kind != "slo" and (unknown := candidate.unknown_before()):
            # Nothing to compare with is met where nothing was ever promoted, and nowhere else.
            way = candidate.command("promote", f"{candidate.version.name}:N")
            command = f"{way}, of the version that is to be compared with, without --environment"
            yield Demand(name=kind, judgement=Judgement.no(unknown), command=command)
        else:
            yield attested(policy, candidate if kind == "slo" else candidate.compared(), kind)


def _simple(name: str, wrong: Sequence[str], good: str, command: str) -> Demand:
    if wrong:
        return Demand(name=name, judgement=Judgement.no("; ".join(wrong)), command=command)
    return Demand(name=name, judgement=Judgement.yes(good))


def _native(candidate: Candidate) -> Demand:
    path = candidate.version.evidence / SERVED_FILE
    command = "deployctl package CKPT, where a native tritonserver is on PATH"
    try:
        found = ServedEvidence.read(path).mode if path.exists() else "not served"
    except DeployError as error:
        return Demand(name="native", judgement=Judgement.no(error.found), command=command)
    wrong = [] if found == NATIVE else [f"served parity is `{found}`, not `{NATIVE}`"]
    return _simple("native", wrong, f"served parity is `{NATIVE}`", command)


def _evidence_age(candidate: Candidate, days: float, command: str) -> Demand:
    created = candidate.manifest.created
    wrong = too_old("the evidence", datetime.fromisoformat(created), candidate.now, days)
    return _simple("evidence age", wrong, f"packaged at {created}", command)


def _signature(candidate: Candidate) -> Demand:
    command = candidate.command("sign", str(candidate.version), "--key FILE")
    assert candidate.signatures is not None, "a policy that demands a signature says whose"
    return Demand(name="signature", judgement=candidate.signatures.judgement, command=command)
