"""What is demanded of a version's attestations: the newest that says something about the demand decides.

Owns which attestation says something, and how old one may be. Changes nothing and loads nothing. Called by policy.

A later "no" outweighs an earlier "yes". Where a signature is demanded, a "yes" counts only if somebody trusted signed
it too.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from deploy.evidence import Judgement, Verdict
from deploy.files import sha256_file
from deploy.latency_evidence import BenchEvidence
from deploy.release.demand import Candidate, Demand
from deploy.release.policy_file import PromotionPolicy, Required
from deploy.report.findings import Learnt, read_attestation
from deploy.repository.attest import attestations
from deploy.repository.history import Relied
from deploy.repository.layout import ATTESTATIONS_FOLDER, Version, promoted_version
from deploy.repository.manifest import version_digest
from deploy.slo.records import SloEvidence
from deploy.validate.difference_records import DiffEvidence

_DIFF_LIMITS = ("max_flips", "max_flipped_rows", "max_accuracy_drop", "max_error", "max_slowdown")
# Clocks of two machines differ; a file from the future beyond that proves no age.
_CLOCK_SKEW = timedelta(minutes=5)


def attested(policy: PromotionPolicy, candidate: Candidate, kind: Required) -> Demand:
    """The newest attestation of a kind that says something about what is demanded."""
    command = _command(policy, candidate, kind)
    if kind != "slo" and (reason := _nothing_to_compare(candidate)):
        return Demand(name=kind, judgement=Judgement.yes(reason))
    if kind != "slo" and candidate.manifest.format == "vllm":
        said = f"{candidate.version} is a language model, which {kind} does not run"
        return Demand(
            name=kind, judgement=Judgement.no(said), command=f"leave {kind} out of `require` for language models"
        )
    reasons = []
    for one, path in _learnt(candidate.version):
        if one.kind != kind:
            continue
        if beside := _beside_the_point(policy, candidate, one):
            reasons.append(beside)
            continue
        if _passed(one) and (future := _from_future(one.file, _time(one), candidate.now)):
            # Else a clock that once ran ahead would outweigh every later "no".
            reasons.append(future)
            continue
        wrong = [] if _passed(one) else [_reason(one)]
        if policy.max_age_days is not None:
            wrong += too_old(one.file, _time(one), candidate.now, policy.max_age_days)
        if wrong:
            return Demand(name=kind, judgement=Judgement.no("; ".join(wrong)), command=command)
        if "signature" in policy.require and not _covered(candidate, one):
            # A "no" counts whoever wrote it; a "yes" could be anybody's.
            reasons.append(f"{one.file} is covered by no signature that counts")
            command = candidate.command("sign", str(candidate.version), "--key FILE")
            continue
        file = path.relative_to(candidate.version.model_folder / ATTESTATIONS_FOLDER).as_posix()
        relied = Relied(kind=kind, file=file, sha256=sha256_file(path))
        return Demand(name=kind, judgement=Judgement.yes(f"{one.file}: {_reason(one)}"), relied=relied)
    said = "; ".join(dict.fromkeys(reasons)) or f"there is no attestation of kind {kind}"
    return Demand(name=kind, judgement=Judgement.no(said), command=command)


def too_old(what: str, made: datetime, now: datetime, days: float) -> list[str]:
    """Why what was made then proves nothing now: older than so many days, or from the future; empty if it does."""
    if future := _from_future(what, made, now):
        return [future]
    age = now - made
    if age > timedelta(days=days):
        return [f"{what} is {age / timedelta(days=1):.1f} days old, at most {days:g} may be"]
    return []


def _from_future(what: str, made: datetime, now: datetime) -> str:
    return f"{what} is from the future, {made:%Y-%m-%d %H:%M} UTC" if now - made < -_CLOCK_SKEW else ""


def _learnt(version: Version) -> list[tuple[Learnt, Path]]:
    """Every attestation, the newest first."""
    digest = version_digest(version.folder)
    return [(read_attestation(one, digest), one.path) for one in reversed(attestations(version))]


def _covered(candidate: Candidate, one: Learnt) -> bool:
    """Whether somebody trusted signed the attestation as it lies there."""
    return candidate.signatures is not None and one.file in candidate.signatures.attested


def _nothing_to_compare(candidate: Candidate) -> str:
    """Why a comparison with the promoted version cannot be demanded; empty if it can."""
    if candidate.promoted == candidate.version.number:
        return f"{candidate.version} is the promoted version itself"
    if candidate.promoted_digest is None:
        return "no version is promoted that it could be compared with"
    return ""


def _beside_the_point(policy: PromotionPolicy, candidate: Candidate, one: Learnt) -> str:
    """Why an attestation says nothing about the demand; empty if it does, a damaged one included."""
    record = one.record
    if isinstance(record, SloEvidence):
        return "" if _failed(one) else _weaker_promise(policy, record, one.file)
    if isinstance(record, DiffEvidence | BenchEvidence):
        if record.compared_digest != candidate.promoted_digest:
            against = record.compared or "no other version"
            present = f"{candidate.version.name}:{candidate.promoted}"
            return f"{one.file} is against {against}, and {present} is promoted"
        return "" if _failed(one) else _weaker_limits(policy, record, one.file)
    return ""


def _failed(one: Learnt) -> bool:
    """Whether it failed what it was held to: who misses the easier limit misses the one that is demanded."""
    record = one.record
    held = not isinstance(record, SloEvidence) or record.invalid is None
    if isinstance(record, BenchEvidence):
        held = record.max_slowdown is not None
    return held and one.judgement is not None and one.judgement.verdict is Verdict.FAIL


def _weaker_promise(policy: PromotionPolicy, record: SloEvidence, file: str) -> str:
    limits = [row.bound.limit for row in record.bounds if row.bound.kind == "latency" and row.bound.q >= 0.99]
    if policy.max_p99_ms is not None and not any(limit <= policy.max_p99_ms for limit in limits):
        return f"{file} promises no p99 of at most {policy.max_p99_ms:g} ms"
    if policy.min_rate is not None and record.rate < policy.min_rate:
        return f"{file} is at {record.rate:g} queries/s, and {policy.min_rate:g} are demanded"
    if record.confidence < policy.min_confidence:
        return f"{file} is sure to {record.confidence:.4g}, and {policy.min_confidence:.4g} is demanded"
    seconds = (record.queries - 1) / record.client.offered_rate
    if policy.min_seconds is not None and seconds < policy.min_seconds:
        return f"{file} rests on {seconds:.1f} s of load, and {policy.min_seconds:g} are demanded"
    return ""


def _weaker_limits(policy: PromotionPolicy, record: DiffEvidence | BenchEvidence, file: str) -> str:
    if isinstance(record, BenchEvidence):
        asked = {} if record.max_slowdown is None else {"max_slowdown": record.max_slowdown}
        wanted = {"max_slowdown": policy.max_slowdown}
    else:
        asked = {gate.name: gate.limit for gate in record.gates}
        # A slowdown is the bench's to show where that is demanded too.
        names = [name for name in _DIFF_LIMITS if name != "max_slowdown" or "bench" not in policy.require]
        wanted = {name: getattr(policy, name) for name in names}
    for name, limit in wanted.items():
        if limit is not None and not asked.get(name, float("inf")) <= limit:
            return f"{file} was not held to --{name.replace('_', '-')} {limit:g}"
    return "" if asked else f"{file} was held to no limit"


def _passed(one: Learnt) -> bool:
    if one.damage or one.judgement is None or not one.judgement.passed:
        return False
    return not (isinstance(one.record, SloEvidence) and one.record.invalid is not None)


def _reason(one: Learnt) -> str:
    if one.damage:
        return one.damage
    if isinstance(one.record, SloEvidence) and one.record.invalid is not None:
        return f"{one.file} proves nothing: {one.record.invalid}"
    return f"{one.judgement.verdict}, {one.judgement.reason}" if one.judgement else f"{one.file} has no verdict"


def _command(policy: PromotionPolicy, candidate: Candidate, kind: Required) -> str:
    version = candidate.version
    if kind == "slo":
        p99 = "X" if policy.max_p99_ms is None else f"{policy.max_p99_ms:g}"
        rate = "QPS" if policy.min_rate is None else f"{policy.min_rate:g}"
        where = f"--url HOST:PORT --rate {rate} --p99-ms {p99} --repository {version.repository}"
        return f"deployctl slo {version} {where}"
    if kind == "bench":
        slowdown = "X" if policy.max_slowdown is None else f"{policy.max_slowdown:g}"
        return candidate.command("bench", str(version), f"--compare {candidate.promoted} --max-slowdown {slowdown}")
    asked = {name: getattr(policy, name) for name in _DIFF_LIMITS}
    limits = [f"--{name.replace('_', '-')} {limit:g}" for name, limit in asked.items() if limit is not None]
    wanted = limits or ["--max-flips SHARE"]
    # The network of an ensemble may have been promoted by its own name meanwhile.
    old = "promoted" if promoted_version(version.model_folder) == candidate.promoted else str(candidate.promoted)
    return candidate.command("diff", version.name, old, str(version.number), *wanted)


def _time(one: Learnt) -> datetime:
    return datetime.strptime(one.time, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
