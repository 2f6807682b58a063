"""The search for a better configuration of a published version, on a server of its own.

Owns the order of the steps. Called by the command `tune`.

    1. The version is found and its files compared with their digests; what could not be published is refused now.
    2. Its knobs: what the target heeds. The trials of an earlier go, where they are to be gone on from.
    3. A server in explicit control. Each trial loads the version anew with a config override, and probes it.
    4. The best setting against the version's own, interleaved at equal rates.
    5. If it is better beyond noise, version N+1: the same artifact with the other config, served from the stage.
    6. What was found is kept as an attestation of the version that was searched.
"""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from deploy.cache import cache_folder
from deploy.errors import DeployError, UnfinishedError, UsageError, after
from deploy.evidence import Judgement
from deploy.files import sha256_bytes
from deploy.progress import Progress, Silent
from deploy.repository.attest import attest_or_tell
from deploy.repository.manifest import created_now
from deploy.slo.request import default_deadline
from deploy.slo.tune_records import Confirmation, TuneEvidence, TuneTrial
from deploy.tune.bed import Bed, BedPlan, ServerGone, SettingRefused, TestBed
from deploy.tune.confirm import Duel, confirm
from deploy.tune.hopeless import nearest_words, why_none_can
from deploy.tune.knobs import all_settings, apply, difference, first_settings
from deploy.tune.publish import Successor, publish_tuned
from deploy.tune.request import TuneRequest, TuneResult
from deploy.tune.search import SAMPLER, Search, SearchPlan, set_aside
from deploy.tune.subject import Subject, find_subject
from deploy.tune.trials import Budget, Trials, best_of
from deploy.validate.machine import describe_cpus

KIND = "tune"
_METHOD = (
    "a setting's value is the highest rate, within 5 %, at which short open-loop probes keep the bound; a rate that at "
    "least half of the queries keep is probed once more before it counts as missed; a setting that misses the best "
    "rate so far is ended early; the winner is compared with the version's own setting in interleaved rounds at equal "
    "rates, by an exact permutation test over rounds"
)

MakeBed = Callable[[BedPlan], AbstractContextManager[TestBed]]


class SearchInterrupted(KeyboardInterrupt):
    """Ctrl-C, with what is kept and how to go on as its text."""


def tune(request: TuneRequest, *, progress: Progress = Silent(), make_bed: MakeBed = Bed) -> TuneResult:
    """The best configuration of a version for a bound, published as its next version where it is better.

    Raises UsageError if the version cannot be searched or its next one not be published, MissingError without the
    means, UnfinishedError if nothing could be measured, SearchInterrupted at ctrl-C.
    """
    begun = time.monotonic()
    subject = find_subject(request)  # 1, 2
    plan = BedPlan(
        version=subject.version,
        engine=request.engine,
        bound=request.bound,
        probe_seconds=request.probe_seconds,
        protocol=request.protocol,
        samples=request.samples,
        seed=request.seed,
    )
    search_plan = _search_plan(request, subject)
    storage = _storage(request, search_plan)
    if request.resume and not storage.exists():
        progress.note(f"{storage} holds no search of this version, bound and machine: a new one begins")
    with Search(search_plan, storage) as search:
        try:
            with make_bed(plan) as bed:  # 3
                trials = Trials(
                    search=search, bed=bed, limit_ms=request.bound.limit, probe_seconds=request.probe_seconds
                )
                trials.run(Budget(trials=request.trials, seconds=request.timeout), progress)
                confirmation = _confirm(bed, request, subject, search.trials, progress)  # 4
        except KeyboardInterrupt as interrupt:
            kept = f"{len(search.trials)} of {request.trials} trials are kept in {storage}"
            raise SearchInterrupted(f"{kept}; the same command with --resume goes on from there") from interrupt
        evidence = _evidence(request, subject, search.trials, confirmation, time.monotonic() - begun)
    return _finish(request, subject, evidence, storage, progress)


def _finish(
    request: TuneRequest, subject: Subject, evidence: TuneEvidence, storage: Path, progress: Progress
) -> TuneResult:
    """What the search came to, published and kept unless this is a dry run.

    What took so long to find is given back also where it cannot be published or kept: the result says why.
    """
    config = apply(subject.config, evidence.chosen)
    published, problem, kept = None, None, None
    if evidence.outcome == "better" and not request.dry_run:  # 5
        successor = Successor(
            version=subject.version,
            config=config,
            evidence=evidence,
            command=request.command,
            engine=request.engine,
            promote=request.promote,
            instead_of=subject.promoted,
        )
        try:
            published = publish_tuned(successor, progress=progress)
        except DeployError as error:
            problem = error
    if not request.dry_run:
        kept, lost = attest_or_tell(subject.version, KIND, evidence, digest=subject.digest)  # 6
        if lost is not None and problem is None:
            problem = after(str(published.version) if published else "", lost)
    return TuneResult(
        evidence=evidence,
        difference=difference(subject.config, config),
        storage=storage,
        published=published,
        attestation=kept,
        problem=problem,
    )


def _search_plan(request: TuneRequest, subject: Subject) -> SearchPlan:
    return SearchPlan(
        knobs=subject.knobs,
        first=first_settings(subject.own, subject.knobs, cores=request.cores),
        key={
            "version": subject.digest,
            "bound": request.bound.wanted,
            "knobs": {knob.name: list(knob.values) for knob in subject.knobs},
            "engine": f"{request.engine.kind} {request.engine.server_version}",
            "protocol": request.protocol,
            "machine": describe_cpus(),
        },
        seed=request.seed,
    )


def _storage(request: TuneRequest, plan: SearchPlan) -> Path:
    """Where the trials are kept. A search that is not resumed sets those of an earlier one aside."""
    if request.storage is not None:
        if request.storage.exists() and not request.resume:
            raise UsageError(
                f"{request.storage} exists",
                expected="a new file for --storage, or --resume",
                fix="add --resume to go on with what it holds, or name another file",
            )
        return request.storage
    key = sha256_bytes(json.dumps(plan.key, sort_keys=True).encode())[:16]
    path = cache_folder("tune", f"{key}.journal")
    if not request.resume:
        set_aside(path)
    return path


def _confirm(
    bed: TestBed, request: TuneRequest, subject: Subject, trials: tuple[TuneTrial, ...], progress: Progress
) -> Confirmation | None:
    """The comparison with the version's own setting; None where that one is the best, or nothing is."""
    best = best_of(trials)
    if best is None or best.rate is None or best.setting == subject.own:
        return None
    own = next((trial.rate for trial in trials if trial.setting == subject.own), None)
    duel = Duel(
        own=subject.own,
        new=best.setting,
        own_rate=own,
        new_rate=best.rate,
        bound=request.bound,
        rounds=request.rounds,
    )
    try:
        with progress.stage(f"confirm {best.setting} against {subject.own}"):
            return confirm(bed, duel)
    except (SettingRefused, ServerGone) as error:
        # What does not last through its confirmation is no better configuration.
        return Confirmation(better=False, reason=error.found, rate=None, chance=None, rounds=())


def _evidence(
    request: TuneRequest,
    subject: Subject,
    trials: tuple[TuneTrial, ...],
    confirmation: Confirmation | None,
    seconds: float,
) -> TuneEvidence:
    best = best_of(trials)
    if best is None and all(trial.status == "failed" or trial.client_limited for trial in trials):
        said = next((trial.reason for trial in trials), "no trial was made")
        raise UnfinishedError(
            f"no trial could be measured: {said}",
            expected="a version that loads, and a client that can send faster than it answers",
            fix="look at the reason; raise --timeout if no time was left",
        )
    better = confirmation is not None and confirmation.better and best is not None
    judgement = _judgement(request, subject, trials, confirmation)
    return TuneEvidence(
        model=subject.version.name,
        version=subject.version.number,
        version_digest=subject.digest,
        bound=request.bound,
        judgement=judgement,
        outcome="none" if best is None else "better" if better else "stays",
        own=subject.own,
        chosen=best.setting if better and best else subject.own,
        knobs=subject.knobs,
        space=sum(1 for _ in all_settings(subject.knobs)),
        best=best.number if best else None,
        trials=trials,
        confirmation=confirmation,
        seed=request.seed,
        probe_seconds=request.probe_seconds,
        protocol=request.protocol,
        engine=f"tritonserver {request.engine.server_version} ({request.engine.kind})",
        mode=request.engine.mode,
        machine=describe_cpus(),
        created=created_now(),
        command=request.command,
        seconds=seconds,
        sampler=SAMPLER,
        method=_METHOD,
        remarks=tuple(_remarks(request, subject, trials)),
    )


def _judgement(
    request: TuneRequest, subject: Subject, trials: tuple[TuneTrial, ...], confirmation: Confirmation | None
) -> Judgement:
    best, wanted = best_of(trials), request.bound.wanted
    if best is None:
        near = nearest_words(trials, patience_ms=1000 * default_deadline((request.bound,)))
        return Judgement.no(
            f"no configuration keeps {wanted} at any rate that was tried" + (f"; {near}" if near else "")
        )
    if confirmation is None:
        reason = f"the config stays: {subject.own} is the best of {len(trials)}, {best.rate:.4g}/s keep {wanted}"
    elif confirmation.better:
        reason = f"{best.setting} is better than {subject.own}: {confirmation.reason}"
    else:
        reason = f"the config stays: {best.setting} is not better beyond noise: {confirmation.reason}"
    return Judgement.yes(reason)


def _remarks(request: TuneRequest, subject: Subject, trials: tuple[TuneTrial, ...]) -> list[str]:
    found = []
    if request.engine.kind == "local" and subject.manifest.target.triton is not None:
        found.append(
            f"measured on the local engine, not on target {subject.manifest.target.name}: its backends share no code "
            "with those of that release"
        )
    limited = sum(trial.client_limited for trial in trials)
    if limited:
        found.append(f"the client was the limit in {limited} of {len(trials)} trials: the server may sustain more")
    failed = sum(trial.status == "failed" for trial in trials)
    if failed:
        found.append(f"{failed} of {len(trials)} trials failed")
    if (why := why_none_can(trials, subject.knobs)) and len(trials) < request.trials:
        found.append(f"{why}; so the search ended after {len(trials)} of {request.trials} trials")
    return found
