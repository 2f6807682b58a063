"""Evidence and attestations for the tests of this room: seeded, plausible, and hostile where that is asked for."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deploy.evidence import (
    BehaviourEvidence,
    FaultPlace,
    Judgement,
    OutputParity,
    ParityEvidence,
    ParityFailure,
    ServedCheck,
    ServedEvidence,
    Verdict,
    WorstElement,
)
from deploy.latency_evidence import (
    CONTROL,
    EAGER,
    BenchEvidence,
    ContenderStart,
    LatencyCell,
    LatencyEvidence,
    LatencyRatio,
    Quantile,
)
from deploy.repository.layout import Version
from deploy.repository.manifest import Manifest, version_digest
from deploy.repository.publish import publish
from deploy.repository.stage import Stage, open_stage
from deploy.slo.records import (
    Bound,
    BoundResult,
    ClientSide,
    LatencyQuantile,
    Moment,
    RateEvidence,
    RateStep,
    ServerSide,
    SloEvidence,
)
from deploy.slo.tune_records import Confirmation, ConfirmRound, Knob, Probe, Setting, TuneEvidence, TuneTrial
from tests.repository.samples import PASS, PETS, Sample

HOSTILE = "<script>alert('x')</script>|$\\frac{$ \x1b[31m\x00 \N{SNOWMAN} 模型"
UNDECIDED = Judgement(verdict=Verdict.UNDECIDED, reason="40 of 3,000 queries are over 15 ms, 1 % may be")
FAILED = Judgement(verdict=Verdict.FAIL, reason="93 of 4,000 queries are over 15 ms, at most 1 % may be")
BATCHES = (1, 8)
_MEDIANS = {EAGER: 22.0, CONTROL: 22.4, "aoti": 20.1, "onnx": 12.3}


def judged(verdict: Verdict) -> Judgement:
    """A verdict with a reason that fits it."""
    passed = Judgement(verdict=Verdict.PASS, reason="every promise is kept")
    return {Verdict.PASS: passed, Verdict.FAIL: FAILED, Verdict.UNDECIDED: UNDECIDED}[verdict]


def parity(
    *, format: str = "onnx", outputs: tuple[str, ...] = ("scores",), multiple: float = 0.73, flipped: int = 0
) -> ParityEvidence:
    """Parity that fails where the multiple is over its limit of 10; each further output is a third nearer to eager."""
    passed = multiple <= 10
    worst = WorstElement(case="normal, batch 3", sample=2, index=(1,), reference=0.57379, found=0.57368)
    failure = ParityFailure(
        check="max error", output=outputs[0], case="normal, batch 3", message=f"{multiple:g} times eager's own error",
        sample=2, index=(1,), reference=0.57379, found=0.57368,
    )  # fmt: skip
    place = FaultPlace(kind="constant", name="bn1.running_var", message="differs by 1e-3", reproduced=True)
    return ParityEvidence(
        format=format,
        judgement=PASS if passed else Judgement(verdict=Verdict.FAIL, reason=failure.message),
        reference="float64",
        max_limit=10,
        l2_limit=5,
        cases=("normal, batch 3", "constant, batch 8"),
        rows=80,
        outputs=tuple(
            OutputParity(
                output=name,
                max_multiple=multiple / 3**number,
                l2_multiple=multiple / 4 / 3**number,
                max_error=9.4e-6,
                eager_max_error=1.1e-5,
                reference_scale=15.5,
                worst=worst,
                decisions_compared=16,
                decisions_flipped=flipped,
            )
            for number, name in enumerate(outputs)
        ),
        failures=() if passed else (failure,),
        place=None if passed else place,
        bitwise_repeatable=True,
        bitwise_batch_invariant=False,
        seed=0,
    )


def latency(*, distribution: bool = True) -> LatencyEvidence:
    """Four contenders at two batch sizes, log-normal; older evidence has no distribution."""
    random = np.random.default_rng(0)
    cells = []
    for batch in BATCHES:
        for name, median in _MEDIANS.items():
            calls = np.sort(median * batch**0.8 * random.lognormal(0.0, 0.12, 400))
            cells.append(_cell(name, batch, calls, distribution=distribution))
    ratios = [
        LatencyRatio(contender=name, base=EAGER, batch=batch, ratio=median / 22, low=median / 23, high=median / 21)
        for batch in BATCHES
        for name, median in _MEDIANS.items()
        if name != EAGER
    ]
    starts = [
        ContenderStart(contender=name, load_seconds=0.5, first_call_ms=60.0, peak_memory=440_000_000, base_memory=1)
        for name in _MEDIANS
    ]
    return LatencyEvidence(
        judgement=Judgement(verdict=Verdict.PASS, reason="onnx is chosen, p50 12.3 [12.1, 12.6] ms at batch 1"),
        device="cpu: Wide Core 9000, 2 of 2 CPUs",
        threads=2,
        versions={"torch": "2.13.0"},
        method="interleaved, one process each",
        confidence=0.95,
        cells=tuple(cells),
        ratios=tuple(ratios),
        starts=tuple(starts),
        winner="onnx",
        winner_rule="the lowest p50 at batch 1",
    )


def _cell(name: str, batch: int, calls: np.ndarray, *, distribution: bool) -> LatencyCell:
    def quantile(q: float) -> Quantile:
        value = float(np.quantile(calls, q))
        return Quantile(value=value, low=value * 0.98, high=value * 1.03)

    shares = np.quantile(calls, np.linspace(0, 1, 21)).tolist()
    return LatencyCell(
        contender=name, batch=batch, n=len(calls), rounds=40, p50=quantile(0.5), p90=quantile(0.9), p95=quantile(0.95),
        p99=quantile(0.99) if batch == 1 else None, distribution=tuple(shares) if distribution else (),
    )  # fmt: skip


def bench(version: Version) -> BenchEvidence:
    """The version measured again, without a limit on anything."""
    return BenchEvidence(
        version=str(version), digest=version_digest(version.folder), compared=None, compared_digest=None,
        checkpoint=None, max_slowdown=None, created="2026-11-23T10:00:00Z", command=("deployctl", "bench"),
        latency=latency(),
    )  # fmt: skip


def served() -> ServedEvidence:
    """Eight ways of asking, all passed."""
    checks = [
        ServedCheck(name=name, protocol=protocol, requests=30, rows=80, judgement=PASS)
        for protocol in ("grpc", "http")
        for name in ("one request at a time", "concurrent requests", "several rows at once", "classification labels")
    ]
    return ServedEvidence(
        judgement=PASS,
        mode="served (adapted)",
        engine="tritonserver 2.51.0 (local)",
        release="24.10",
        backend="onnxruntime (python-based, onnxruntime 1.32.0)",
        config_difference=("runtime: unset -> model.py",),
        checks=tuple(checks),
        executions=13,
        inferences=80,
        ready_seconds=2.4,
    )


def slo(
    verdict: Verdict = Verdict.PASS,
    *,
    rate: float = 200,
    invalid: str | None = None,
    errors: dict[str, int] | None = None,
    model: str = "pets",
) -> SloEvidence:
    """A load run of a minute with a p99 of 11 ms, or of 19 ms where the verdict is fail; the limit is 15 ms."""
    random = np.random.default_rng(1)
    slow = {Verdict.PASS: 0.25, Verdict.UNDECIDED: 0.39, Verdict.FAIL: 0.47}[verdict]
    count = 4_000
    times = np.sort(random.uniform(0, 60, count))
    values = 6.2 * random.lognormal(0.0, slow, count)
    over = int((values > 15).sum())
    errors = errors or {}
    stretches = [(second, values[(times >= second) & (times < second + 2)]) for second in range(0, 60, 2)]
    no_errors = Bound(kind="errors", q=0.999, limit=0.001)
    return SloEvidence(
        model=model,
        version=1,
        version_digest=None,
        url="127.0.0.1:8001",
        rate=rate,
        seed=0,
        samples="12 real rows of evidence/samples.npz",
        seconds_asked=60,
        seconds_taken=61.3,
        started="2026-11-23T10:15:00Z",
        judgement=judged(verdict),
        invalid=invalid,
        bounds=(
            _bound(Bound(kind="latency", q=0.99, limit=15), judged(verdict), n=count, over=over),
            _bound(no_errors, _error_judgement(errors), n=count, over=sum(errors.values())),
        ),
        queries=count,
        warm_up_queries=400,
        looks=8,
        confidence=0.99,
        deadline=1000,
        quantiles=tuple(_quantile(values, q) for q in (0.5, 0.9, 0.95, 0.99, 0.999)),
        distribution=tuple(np.quantile(values, np.linspace(0, 1, 101)).tolist()),
        timeline=tuple(_moment(second, part, errors) for second, part in stretches),
        errors=errors,
        client=ClientSide(
            protocol="grpc", offered_rate=rate, sent_rate=rate * 0.998, lag_p50=0.11, lag_p99=0.62, lag_max=3.1,
            stalled_seconds=0.0, cpu_seconds=4.2, kept_schedule=invalid is None, remark="",
        ),
        server=ServerSide(
            requests=count, failures=0, executions=1_900, queue=1.7, compute_input=0.21, compute_infer=3.9,
            compute_output=0.12, batch_reached=2.1, batches={1: 700, 2: 600, 4: 600},
        ),
        method="open loop, Poisson arrivals, latency from the scheduled time",
        load_generator="MLPerf LoadGen 5.1",
        remarks=("no version digest was compared",),
    )  # fmt: skip


def _bound(bound: Bound, judgement: Judgement, *, n: int, over: int) -> BoundResult:
    more = 6_200 if judgement.verdict is Verdict.UNDECIDED else None
    return BoundResult(
        bound=bound, judgement=judgement, n=n, over=over, allowed=1 - bound.q, low=over / n * 0.7,
        high=over / n * 1.4 + 0.001, more_queries=more,
    )  # fmt: skip


def _error_judgement(errors: dict[str, int]) -> Judgement:
    if errors:
        return Judgement(verdict=Verdict.FAIL, reason=f"{sum(errors.values())} queries failed")
    return Judgement(verdict=Verdict.PASS, reason="no query failed")


def _quantile(values: np.ndarray, q: float) -> LatencyQuantile:
    value = float(np.quantile(values, q))
    known = q < 0.999
    return LatencyQuantile(q=q, value=value, low=value * 0.95 if known else None, high=value * 1.06 if known else None)


def _moment(second: int, values: np.ndarray, errors: dict[str, int]) -> Moment:
    p50, p99, most = (float(np.quantile(values, q)) for q in (0.5, 0.99, 1.0))
    failed = sum(errors.values()) if second == 30 else 0
    return Moment(second=second, queries=len(values), p50=p50, p99=p99, maximum=most, failed=failed)


def rate() -> RateEvidence:
    """A search that passed at 200 queries/s and not at 260."""
    steps = [
        RateStep(rate=100, verdict=Verdict.PASS, reason="kept", queries=900, p99=8.1),
        RateStep(rate=400, verdict=Verdict.FAIL, reason="the queue grows without end", queries=700, p99=410.0),
        RateStep(rate=260, verdict=Verdict.UNDECIDED, reason="too near to tell", queries=9_000, p99=15.2),
        RateStep(rate=180, verdict=Verdict.PASS, reason="kept", queries=1_400, p99=10.4),
        RateStep(rate=900, verdict=Verdict.FAIL, reason="nothing came back", queries=50, p99=None),
    ]
    return RateEvidence(
        model="pets",
        version=1,
        judgement=Judgement(verdict=Verdict.PASS, reason="200 queries/s pass"),
        highest=200,
        next_rate=260,
        steps=tuple(steps),
        final=slo(),
    )


def tune(version: Version, *, reason: str = "kept") -> TuneEvidence:
    """A search of three settings whose second was better than the version's own, the first."""
    own, best, refused = (Setting(batch_limit=8, delay_us=0, instances=count, threads=2) for count in (1, 2, 4))
    slow, fast = _probe(200, 9.4, reason=reason), _probe(200, 6.1, reason=reason)
    faster, over = _probe(310, 13.2, reason=reason), _probe(420, 61.0, reason="93 of 4,000 are over")
    trials = (
        TuneTrial(number=0, setting=own, status="measured", rate=200, score=200, reason="", probes=(slow,), seconds=9),
        TuneTrial(
            number=1, setting=best, status="measured", rate=310, score=310, reason="", probes=(fast, faster, over),
            seconds=12,
        ),
        TuneTrial(number=2, setting=refused, status="failed", rate=None, score=0, reason="no room", seconds=1),
    )  # fmt: skip
    rounds = tuple(ConfirmRound(rate=310, own=over, new=faster, own_first=first) for first in (True, False))
    return TuneEvidence(
        model=version.name,
        version=version.number,
        version_digest=version_digest(version.folder),
        bound=Bound(kind="latency", q=0.99, limit=15.0),
        judgement=Judgement(verdict=Verdict.PASS, reason=f"{best} is better than {own}"),
        outcome="better",
        own=own,
        chosen=best,
        knobs=(Knob(name="instances", values=(1, 2, 4)),),
        space=12,
        best=1,
        trials=trials,
        confirmation=Confirmation(better=True, reason="kept", rate=310, chance=0.004, rounds=rounds),
        seed=0,
        probe_seconds=4.0,
        protocol="grpc",
        engine="tritonserver 2.51.0 (local)",
        mode="served (adapted)",
        machine="a processor, 2 CPUs",
        created="2026-11-23T10:00:00Z",
        command=("deployctl", "tune"),
        seconds=22.0,
        sampler="TPE",
        method="short probes",
    )


def _probe(rate: float, p99: float, *, reason: str) -> Probe:
    return Probe(rate=rate, kept=p99 <= 15, reason=reason, queries=800, over=0 if p99 <= 15 else 93, p99=p99)


GOOD_PARITY = parity()


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What a test version's evidence says; the defaults pass every check."""

    sample: Sample = PETS
    parity: ParityEvidence = GOOD_PARITY
    architecture: Verdict = Verdict.PASS

    def manifest(self) -> Manifest:
        """The manifest, but for what publishing adds."""
        whole = self.sample.manifest()
        architecture = Judgement(verdict=self.architecture, reason="behaviour confirmed by the samples' outputs")
        verdicts = whole.verdicts.model_copy(
            update={"parity": self.parity.judgement, "architecture": architecture, "latency": latency().judgement}
        )
        return whole.model_copy(update={"verdicts": verdicts, "created": "2026-11-23T10:00:00Z"})

    def populate(self, stage: Stage) -> None:
        """Put a whole version into the stage."""
        self.sample.populate(stage)
        stage.add_evidence("parity.json", self.parity.to_json().encode())
        stage.add_evidence("latency.json", latency().to_json().encode())
        stage.add_evidence("served.json", served().to_json().encode())
        behaviour = BehaviourEvidence(
            status="confirmed", statement="confirmed", rows=32, labelled_rows=32, accuracy=0.9
        )
        stage.add_evidence("behaviour.json", behaviour.to_json().encode())


STORY = Story()


def tell(repository: Path, story: Story = STORY) -> Version:
    """The story published as a version."""
    with open_stage(repository, story.sample.name) as stage:
        story.populate(stage)
        return publish(stage, story.manifest()).version


def unsafe_story() -> Story:
    """Parity failed, and was accepted all the same."""
    broken = parity(multiple=4_213.0, outputs=("scores", "boxes", "masks"), flipped=3)
    return Story(sample=replace(PETS, unsafe_accepted=("parity",)), parity=broken)
