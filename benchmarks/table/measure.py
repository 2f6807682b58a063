"""One model from its weights to its record: converted by hand and by us, judged alike, raced together.

Owns the order of the steps. Called by run.

    1. Save the weights; convert by hand, compile, and package, each in a new process with empty caches.
    2. Judge every route by the same rows, against the same float64 reference and eager's own error.
    3. Race them, interleaved, the others stopped, beside eager against itself.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.table.cold import run_cold
from benchmarks.table.ours import package_arguments, read_packaged
from benchmarks.table.peers import PINNED, NavigatorContender, environment
from benchmarks.table.place import here
from benchmarks.table.records import COMPILED, NAVIGATOR, Accuracy, Cell, Cold, ModelRecord, Settings
from benchmarks.table.routes import ONE_ROW, Made, hand_entrants
from benchmarks.table.subjects import Subject, make_subject
from deploy.errors import UnfinishedError
from deploy.latency_evidence import Quantile
from deploy.processes import Worker, prepare, run_alone
from deploy.validate.baseline import Baseline
from deploy.validate.contenders import Contender, Entrant, Surroundings, inputs_by_batch, open_entrants
from deploy.validate.parity import Answer, judge
from deploy.validate.race import Finished, LatencyPlan, Rounds, run_race
from deploy.validate.statistics import percentile

BOTH, COMPILING, PACKAGING = "by hand", "torch.compile", "deployctl"
# Of each family of inputs: one row alone, and two together.
_JUDGED_ROWS = ((0,), (0, 1))

Run = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


def measure_model(name: str, settings: Settings, work: Path) -> ModelRecord:
    """The record of one model; its files lie below `work` while it is made. Raises RuntimeError if a route fails."""
    prepare("deploy.convert.preload")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        subject = run_alone("weights", make_subject, name, work, settings.batches).value
        made, cold = _make(subject, work, compiled=settings.compiled)
        packaged = read_packaged(subject, work / "repository")
        baseline = packaged.baseline()
        left_out = () if settings.compiled else (COMPILED,)
        entrants = [
            *hand_entrants(made, threads=settings.threads, left_out=left_out),
            *packaged.entrants(settings.threads),
        ]
        accuracy = tuple(_judge(entrant, baseline, work / "logs") for entrant in entrants)
        given = _surroundings(baseline, settings, work / "logs")
        peer = _navigate(subject, work) if settings.peers else None
        guest = NavigatorContender(python=peer.python, folder=peer.folder, given=given) if peer and peer.cold else None
        if guest:
            accuracy = (*accuracy, _judge_peer(guest, baseline))
        finished = _race(entrants, settings, given, guest)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return ModelRecord(
        model=name,
        settings=settings,
        place=here(),
        cold=(*cold, peer.cold) if peer and peer.cold else cold,
        accuracy=accuracy,
        cells=tuple(cells_of(finished, settings.confidence)),
        starts=finished.starts,
        lost=finished.lost,
        chosen=packaged.chosen,
        artifacts={str(format_): manifest.artifact for format_, manifest in packaged.manifests.items()},
        notes=(peer.note,) if peer else (),
    )


def _make(subject: Subject, work: Path, *, compiled: bool) -> tuple[Made, tuple[Cold, ...]]:
    """Step 1. Our cache is empty too: nothing of a model before is reused."""
    artifacts = work / "artifacts"
    artifacts.mkdir()
    network = [subject.name, str(subject.weights)]
    both = ["-m", "benchmarks.by_hand.convert", *network, str(artifacts), str(subject.max_batch)]
    cold = [run_cold(BOTH, both, work / "by-hand")]
    if compiled:
        cold.append(run_cold(COMPILING, ["-m", "benchmarks.by_hand.compiled", *network], work / "compiled"))
    cold.append(run_cold(PACKAGING, package_arguments(subject, work / "repository"), work / "packaging"))
    made = Made(name=subject.name, weights=subject.weights, artifacts=artifacts, compiled=work / "compiled")
    return made, tuple(cold)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Peer:
    """Model Navigator's cold run, None where it failed, and what is to be said of it."""

    python: Path
    folder: Path
    cold: Cold | None
    note: str


def _navigate(subject: Subject, work: Path) -> _Peer:
    """Step 1 for Model Navigator, in its own environment beside the models' folders; its failure ends nothing."""
    python, folder = environment(work.parent / "peers"), work / "navigator"
    arguments = ["-m", "benchmarks.by_hand.model_navigator", "optimize", subject.name, str(subject.weights)]
    folder.mkdir()
    try:
        cold = run_cold(
            NAVIGATOR, [*arguments, str(folder), str(subject.max_batch)], work / "navigating", python=python
        )
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        return _Peer(python=python, folder=folder, cold=None, note=f"{NAVIGATOR}'s optimize() failed: {last}")
    note = f"{NAVIGATOR}: {PINNED}, its best serialised runner; it waits for no GPU here, which is mended"
    return _Peer(python=python, folder=folder, cold=cold, note=note)


def _judge(entrant: Entrant, baseline: Baseline, logs: Path) -> Accuracy:
    """Step 2, for one route."""
    rows = _JUDGED_ROWS[:1] if entrant.name in ONE_ROW else _JUDGED_ROWS
    with Worker(f"parity of {entrant.name}", log=logs / "parity.log") as worker:

        def load() -> Run:
            worker.make(entrant.factory)
            return partial(worker.call, "run")

        return _accuracy(entrant.name, load, baseline, rows)


def _judge_peer(guest: NavigatorContender, baseline: Baseline) -> Accuracy:
    """Step 2 for Model Navigator."""

    def load() -> Run:
        guest.load()
        return guest.run

    try:
        return _accuracy(guest.name, load, baseline, _JUDGED_ROWS)
    finally:
        guest.close()


def _accuracy(name: str, load: Callable[[], Run], baseline: Baseline, rows: Sequence[tuple[int, ...]]) -> Accuracy:
    """How far a route is from float64; of one that crashes the reason is kept."""
    pools = {pool.family: pool for pool in baseline.question.pools}
    cases = [case for case in baseline.question.cases if case.rows in rows]
    try:
        run = load()
        answers = (Answer(case=case, outputs=run(pools[case.family].take(case.rows))) for case in cases)
        evidence = judge(baseline, answers, format=name)
    except UnfinishedError as error:
        return Accuracy(contender=name, verdict="lost", max_multiple=None, l2_multiple=None, rows=0, reason=error.found)
    return Accuracy(
        contender=name,
        verdict=evidence.judgement.verdict.value,
        max_multiple=max((one.max_multiple for one in evidence.outputs), default=None),
        l2_multiple=max((one.l2_multiple for one in evidence.outputs), default=None),
        rows=evidence.rows,
        reason="" if evidence.judgement.passed else evidence.judgement.reason,
    )


def _surroundings(baseline: Baseline, settings: Settings, logs: Path) -> Surroundings:
    """What every contender is given alike."""
    inputs = inputs_by_batch(list(baseline.question.pools[0].inputs), baseline.question.spec, settings.batches)
    return Surroundings(inputs=inputs, threads=settings.threads, logs=logs)


def _race(
    entrants: Sequence[Entrant], settings: Settings, given: Surroundings, guest: NavigatorContender | None
) -> Finished:
    """Step 3."""
    eager, *others = entrants
    try:
        with open_entrants([eager, eager.control(), *others], given) as contenders:
            return race([*contenders, *([guest] if guest else [])], settings)
    finally:
        if guest:
            guest.close()


def race(contenders: Sequence[Contender], settings: Settings) -> Finished:
    """All contenders at all batch sizes, in turns."""
    plan = LatencyPlan(
        max_batch=max(settings.batches),
        sizes=settings.batches,
        threads=settings.threads,
        seconds_per_cell=settings.seconds,
        block_seconds=settings.block_seconds,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    return run_race(contenders, plan)


def cells_of(finished: Finished, confidence: float) -> Iterator[Cell]:
    """The figures of every contender at every batch size, in milliseconds."""
    for batch, timings in finished.timings.items():
        for name, rounds in timings.items():
            yield Cell(
                contender=name,
                batch=batch,
                n=sum(map(len, rounds)),
                p50=_quantile(rounds, 0.5, confidence),
                p90=_quantile(rounds, 0.9, confidence),
                p99=_quantile(rounds, 0.99, confidence),
                rounds=tuple(round(float(np.median(one)) * 1000, 5) for one in rounds),
            )


def _quantile(rounds: Rounds, q: float, confidence: float) -> Quantile | None:
    found = percentile(rounds, q, confidence)
    if found is None:
        return None
    return Quantile(value=found.value * 1000, low=found.low * 1000, high=found.high * 1000)
