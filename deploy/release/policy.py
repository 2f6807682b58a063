"""Whether a version meets what an environment demands, and what would have to be done where it does not.

Owns one rule per demand; changes nothing and loads nothing. Called by promotion under a policy, in `promotion`.

Every demand is looked at, so that one answer names everything that is missing. Of several attestations of a kind the
newest counts that says something about the demand: a later "no" outweighs an earlier "yes".
Where a signature is demanded, a "yes" counts only if somebody trusted signed it too. An ensemble is compared by its
network, which holds the weights: a diff or bench of that is what is asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deploy.errors import DeployError
from deploy.evidence import BenchEvidence, Judgement, ServedEvidence, Verdict
from deploy.files import sha256_file
from deploy.release.policy_file import PromotionPolicy, Required
from deploy.release.signatures import Signatures
from deploy.report.findings import SERVED_FILE, Learnt, read_attestation
from deploy.repository.attest import attestations
from deploy.repository.find import read_manifest
from deploy.repository.history import Relied
from deploy.repository.layout import ATTESTATIONS_FOLDER, Version, promoted_version
from deploy.repository.manifest import MANIFEST_FILE, Manifest, version_digest
from deploy.slo.records import SloEvidence
from deploy.validate.difference_records import DiffEvidence

NATIVE = "served (native)"
_DIFF_LIMITS = ("max_flips", "max_flipped_rows", "max_accuracy_drop", "max_error", "max_slowdown")
# Clocks of two machines differ; a file from the future beyond that proves no age.
_CLOCK_SKEW = timedelta(minutes=5)

SignatureCheck = Callable[[Version], Signatures]
"""Whether somebody who is trusted signed exactly this version, and what was attested of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """One thing that is demanded: whether it is met, the command that would meet it, and what was relied on."""

    name: str
    judgement: Judgement
    command: str = ""
    relied: Relied | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A version that is to be promoted, whose files were found unchanged, and what was promoted at that moment.

    `promoted_digest` is None where nothing that deployctl published is promoted. `now` is when ages are counted from.
    """

    version: Version
    manifest: Manifest
    promoted: int | None
    promoted_digest: str | None
    check_signature: SignatureCheck | None = None
    signatures: Signatures | None = None
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def of(cls, version: Version, manifest: Manifest, *, check_signature: SignatureCheck | None = None) -> "Candidate":
        """The version as it stands now beside the promoted one."""
        number = promoted_version(version.model_folder)
        folder = version.model_folder / str(number)
        digest = version_digest(folder) if (folder / MANIFEST_FILE).is_file() else None
        return cls(
            version=version,
            manifest=manifest,
            promoted=number,
            promoted_digest=digest,
            check_signature=check_signature,
            signatures=check_signature(version) if check_signature else None,
        )

    def compared(self) -> "Candidate":
        """Whose comparison with what is promoted counts: its own, but of an ensemble that of its network.

        That is held against the network which the promoted ensemble runs.
        """
        network = self.manifest.network
        if network is None:
            return self
        before = None
        if self.promoted is not None and self.promoted_digest is not None:
            before = read_manifest(replace(self.version, number=self.promoted)).network
        version = Version(repository=self.version.repository, name=network.model, number=network.version)
        return replace(
            Candidate.of(version, read_manifest(version), check_signature=self.check_signature),
            promoted=before.version if before else None,
            promoted_digest=before.digest if before else None,
            now=self.now,
        )

    def command(self, name: str, *arguments: str) -> str:
        """A command line on this version, its repository first."""
        return " ".join(("deployctl", name, str(self.version.repository), *arguments))


def demands(policy: PromotionPolicy, candidate: Candidate) -> tuple[Demand, ...]:
    """Everything that the policy demands of the candidate, each with its verdict."""
    return tuple(_demands(policy, candidate))


def overall(found: Sequence[Demand]) -> Judgement:
    """Pass where every demand is met; else fail, naming those that are not."""
    unmet = [one.name for one in found if not one.judgement.passed]
    if unmet:
        return Judgement(verdict=Verdict.FAIL, reason=f"not met: {', '.join(unmet)}")
    return Judgement(verdict=Verdict.PASS, reason=f"{len(found)} demands are met")


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
        yield Demand(name="target", judgement=_no(said), command=f"{again} --target {policy.targets[0]}")
    if policy.max_evidence_age_days is not None:
        yield _evidence_age(candidate, policy.max_evidence_age_days, again)
    for kind in policy.require:
        if kind == "signature":
            yield _signature(candidate)
        else:
            yield _attested(policy, candidate if kind == "slo" else candidate.compared(), kind)


def _simple(name: str, wrong: Sequence[str], good: str, command: str) -> Demand:
    if wrong:
        return Demand(name=name, judgement=_no("; ".join(wrong)), command=command)
    return Demand(name=name, judgement=_yes(good))


def _native(candidate: Candidate) -> Demand:
    path = candidate.version.evidence / SERVED_FILE
    command = "deployctl package CKPT, where a native tritonserver is on PATH"
    try:
        found = ServedEvidence.read(path).mode if path.exists() else "not served"
    except DeployError as error:
        return Demand(name="native", judgement=_no(error.found), command=command)
    wrong = [] if found == NATIVE else [f"served parity is `{found}`, not `{NATIVE}`"]
    return _simple("native", wrong, f"served parity is `{NATIVE}`", command)


def _evidence_age(candidate: Candidate, days: float, command: str) -> Demand:
    created = candidate.manifest.created
    wrong = _too_old("the evidence", datetime.fromisoformat(created), candidate.now, days)
    return _simple("evidence age", wrong, f"packaged at {created}", command)


def _signature(candidate: Candidate) -> Demand:
    command = candidate.command("sign", str(candidate.version), "--key FILE")
    assert candidate.signatures is not None, "a policy that demands a signature says whose"
    return Demand(name="signature", judgement=candidate.signatures.judgement, command=command)


def _learnt(version: Version) -> list[tuple[Learnt, Path]]:
    """Every attestation, the newest first."""
    digest = version_digest(version.folder)
    return [(read_attestation(one, digest), one.path) for one in reversed(attestations(version))]


def _attested(policy: PromotionPolicy, candidate: Candidate, kind: Required) -> Demand:
    """The newest attestation of a kind that says something about what is demanded."""
    command = _command(policy, candidate, kind)
    if kind != "slo" and (reason := _nothing_to_compare(candidate)):
        return Demand(name=kind, judgement=_yes(reason))
    if kind != "slo" and candidate.manifest.format == "vllm":
        said = f"{candidate.version} is a language model, which {kind} does not run"
        return Demand(name=kind, judgement=_no(said), command=f"leave {kind} out of `require` for language models")
    reasons = []
    for one, path in _learnt(candidate.version):
        if one.kind != kind:
            continue
        if beside := _beside_the_point(policy, candidate, one):
            reasons.append(beside)
            continue
        wrong = [] if _passed(one) else [_reason(one)]
        if policy.max_age_days is not None:
            wrong += _too_old(one.file, _time(one), candidate.now, policy.max_age_days)
        if wrong:
            return Demand(name=kind, judgement=_no("; ".join(wrong)), command=command)
        if "signature" in policy.require and not _covered(candidate, one):
            # A "no" counts whoever wrote it; a "yes" could be anybody's.
            reasons.append(f"{one.file} is covered by no signature that counts")
            command = candidate.command("sign", str(candidate.version), "--key FILE")
            continue
        file = path.relative_to(candidate.version.model_folder / ATTESTATIONS_FOLDER).as_posix()
        relied = Relied(kind=kind, file=file, sha256=sha256_file(path))
        return Demand(name=kind, judgement=_yes(f"{one.file}: {_reason(one)}"), relied=relied)
    said = "; ".join(dict.fromkeys(reasons)) or f"there is no attestation of kind {kind}"
    return Demand(name=kind, judgement=_no(said), command=command)


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
        return _weaker_promise(policy, record, one.file)
    if isinstance(record, DiffEvidence | BenchEvidence):
        if record.compared_digest != candidate.promoted_digest:
            against = record.compared or "no other version"
            present = f"{candidate.version.name}:{candidate.promoted}"
            return f"{one.file} is against {against}, and {present} is promoted"
        return _weaker_limits(policy, record, one.file)
    return ""


def _weaker_promise(policy: PromotionPolicy, record: SloEvidence, file: str) -> str:
    limits = [row.bound.limit for row in record.bounds if row.bound.kind == "latency" and row.bound.q >= 0.99]
    if policy.max_p99_ms is not None and not any(limit <= policy.max_p99_ms for limit in limits):
        return f"{file} promises no p99 of at most {policy.max_p99_ms:g} ms"
    if policy.min_rate is not None and record.rate < policy.min_rate:
        return f"{file} is at {record.rate:g} queries/s, and {policy.min_rate:g} are demanded"
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


def _too_old(what: str, made: datetime, now: datetime, days: float) -> list[str]:
    age = now - made
    if age < -_CLOCK_SKEW:
        return [f"{what} is from the future, {made:%Y-%m-%d %H:%M} UTC"]
    if age > timedelta(days=days):
        return [f"{what} is {age / timedelta(days=1):.1f} days old, at most {days:g} may be"]
    return []


def _yes(reason: str) -> Judgement:
    return Judgement(verdict=Verdict.PASS, reason=reason)


def _no(reason: str) -> Judgement:
    return Judgement(verdict=Verdict.FAIL, reason=reason)
