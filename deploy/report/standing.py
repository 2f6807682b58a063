"""How a version stands: each check with its word and reason, and the one word for the whole.

Owns the rule that nothing short of every check passed is called PASS; judges no measurement itself. Called by
`html`, `slo_sections` and the command `report`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from deploy.evidence import Judgement
from deploy.latency_evidence import BenchEvidence
from deploy.report import words
from deploy.report.findings import Findings, Learnt
from deploy.repository.signed import KIND as SIGNATURE
from deploy.slo.records import SloEvidence
from deploy.validate.difference_records import DiffEvidence

PASS = "PASS"  # noqa: S105 - not a password
FAIL = "FAIL"
UNDECIDED = "UNDECIDED"
NOT_CHECKED = "NOT CHECKED"
DAMAGED = "DAMAGED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the verdicts. `word` is PASS, FAIL, UNDECIDED, INVALID, NOT CHECKED or DAMAGED."""

    name: str
    word: str
    reason: str


def checks(findings: Findings) -> tuple[Check, ...]:
    """Every verdict on the version: those of packaging, that of its files, and the latest of each kind since."""
    return (*_packaged(findings), *_files(findings), *_learnt(findings))


def overall(found: tuple[Check, ...]) -> Check:
    """PASS where every check passed, FAIL where one failed, else UNDECIDED; the reason names those in the way."""
    failed = [check.name for check in found if check.word == FAIL]
    short = [f"{check.name} ({check.word.lower()})" for check in found if check.word not in (PASS, FAIL)]
    if failed:
        open_ = f"; not proven: {', '.join(short)}" if short else ""
        return Check(name="overall", word=FAIL, reason=f"failed: {', '.join(failed)}{open_}")
    if short or not found:
        return Check(name="overall", word=UNDECIDED, reason=f"not proven: {', '.join(short) or 'anything'}")
    return Check(name="overall", word=PASS, reason="every check passed")


def learnt_word(learnt: Learnt) -> str:
    """The word for an attestation; empty for a kind without a verdict."""
    if learnt.damage:
        return DAMAGED
    if isinstance(learnt.record, SloEvidence):
        return words.standing(learnt.record)
    if isinstance(learnt.record, BenchEvidence) and learnt.record.max_slowdown is None:
        # A measurement without a limit, of which nothing follows for the version.
        return ""
    if isinstance(learnt.record, DiffEvidence) and not learnt.record.gates:
        return ""
    return learnt.judgement.verdict.upper() if learnt.judgement else ""


def learnt_reason(learnt: Learnt) -> str:
    """Why an attestation stands as it does, or that nothing is known of its kind."""
    if learnt.damage:
        return words.printable(learnt.damage)
    if isinstance(learnt.record, SloEvidence):
        return f"at {learnt.record.rate:g} queries/s: {words.reason(learnt.record)}"
    if learnt.judgement:
        return words.printable(learnt.judgement.reason)
    return "not verified here" if learnt.kind == SIGNATURE else "a kind without a verdict"


def when(time: str) -> str:
    """`2026-11-23 10:15:00 UTC` of an attestation's `20261123T101500Z`."""
    return f"{time[:4]}-{time[4:6]}-{time[6:8]} {time[9:11]}:{time[11:13]}:{time[13:15]} UTC"


def _packaged(findings: Findings) -> Iterator[Check]:
    manifest = findings.packaged.manifest
    verdicts = manifest.verdicts
    by_name = {
        "parity": verdicts.parity,
        "architecture": verdicts.architecture,
        "latency": verdicts.latency,
        "served parity": verdicts.served,
    }
    accepted = set(manifest.unsafe_accepted)
    for name, judgement in by_name.items():
        yield _check(name, judgement, unsafe=name in accepted)
        accepted.discard(name)
    for name in sorted(accepted):
        yield Check(name=words.printable(name), word=FAIL, reason="it failed and was accepted as unsafe")
    for damage in findings.packaged.damage:
        yield Check(name="evidence", word=DAMAGED, reason=words.printable(damage))


def _check(name: str, judgement: Judgement | None, *, unsafe: bool) -> Check:
    if judgement is None:
        return Check(name=name, word=NOT_CHECKED, reason="this check was not made")
    said = words.printable(judgement.reason, 2000)
    if unsafe:
        return Check(name=name, word=FAIL, reason=f"accepted as unsafe all the same: {said}")
    return Check(name=name, word=judgement.verdict.upper(), reason=said)


def _files(findings: Findings) -> Iterator[Check]:
    if findings.digest is None:
        return
    if findings.changed:
        yield Check(name="files", word=FAIL, reason=words.printable("; ".join(findings.changed), 2000))
    else:
        yield Check(name="files", word=PASS, reason="every file is as it was published")


def _learnt(findings: Findings) -> Iterator[Check]:
    """The latest attestation of each kind that has a verdict, and every damaged one."""
    latest = {one.kind: one for one in findings.learnt if learnt_word(one) and not one.damage}
    damaged = [one for one in findings.learnt if one.damage]
    for one in (*latest.values(), *damaged):
        name = f"{words.printable(one.kind)} of {when(one.time)}"
        yield Check(name=name, word=learnt_word(one), reason=learnt_reason(one))
