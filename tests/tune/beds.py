"""A test bed of a known response, and a small real version to be tuned."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from deploy.repository.layout import Version
from deploy.repository.publish import publish
from deploy.repository.stage import open_stage
from deploy.slo.tune_records import Probe, Setting
from deploy.tune.bed import ServerGone, SettingRefused
from deploy.validate.store import save_baseline
from tests.repository.samples import SPEC, Sample, classifier
from tests.serve.tiny import Linear

Capacity = Callable[[Setting], float]


def capacity(setting: Setting) -> float:
    """Requests per second: two instances of one thread and batches of 4 within a short delay are the best."""
    spread = {1: 1.0, 2: 1.6, 4: 1.2}[setting.instances or 1] * {1: 1.0, 2: 0.9}[setting.threads or 1]
    merged = {1: 1.0, 2: 1.2, 4: 1.5, 8: 1.3}[setting.batch_limit or 1]
    waiting = 1.0 if setting.delay_us is None else 1.1 - abs(setting.delay_us - 500) / 10_000
    return 100.0 * spread * merged * waiting


@dataclass
class FakeBed:
    """Keeps any rate below the capacity of the setting that is loaded. `refused` settings are not loaded."""

    capacity: Capacity = capacity
    refused: Callable[[Setting], bool] = lambda _: False
    deadly: Callable[[Setting], bool] = lambda _: False
    on_load: Callable[[Setting], None] = lambda _: None
    client_most: float = float("inf")
    loaded: list[Setting] = field(default_factory=list)
    probed: list[tuple[Setting, float]] = field(default_factory=list)
    revived: int = 0
    dead: bool = False

    def __enter__(self) -> "FakeBed":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def load(self, setting: Setting) -> None:
        assert not self.dead, "a dead server was asked to load"
        self.on_load(setting)
        if self.refused(setting):
            raise SettingRefused(f"the server refused {setting}")
        self.loaded.append(setting)

    def pace(self) -> float:
        return self.capacity(self.loaded[-1])

    def probe(self, rate: float) -> Probe:
        setting = self.loaded[-1]
        self.probed.append((setting, rate))
        if self.deadly(setting):
            self.dead = True
            raise ServerGone("the server ended")
        most = self.capacity(setting)
        over = 0 if rate <= most else min(1000, int(1000 * (rate / most - 1)) + 20)
        kept = None if rate > self.client_most else over == 0
        return Probe(rate=rate, kept=kept, reason=f"{over} of 1000", queries=1000, over=over, p99=10.0 + over)

    def revive(self) -> bool:
        self.revived += self.dead
        was_dead, self.dead = self.dead, False
        return was_dead


def put_version(repository: Path, sample: Sample | None = None, *, proven: bool = True) -> Version:
    """The tiny linear classifier with samples of its own; without them where it is not `proven`."""
    chosen = sample or Sample()
    chosen = replace(chosen, weights=Linear().onnx(chosen.spec))
    with open_stage(repository, chosen.name) as stage:
        chosen.populate(stage)
        if proven:
            save_baseline(Linear().baseline(chosen.spec), stage.version.evidence)
        return publish(stage, chosen.manifest()).version


STATIC = classifier(max_batch=1)
BATCHED = SPEC
