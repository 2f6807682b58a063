"""What a search for a better configuration measured, and what it came to.

Owns the records that are kept as attestation and as evidence of the version that a search publishes; `deploy.tune`
fills them, `report` prints them.
"""

from typing import Literal

from deploy.evidence import Judgement
from deploy.records import Record
from deploy.slo.records import Bound

KnobName = Literal["batch_limit", "delay_us", "instances", "threads"]


class Setting(Record):
    """One configuration of the knobs, each None where this version has no such knob.

    `batch_limit` is how many rows the server aims to run together, 1 where it merges nothing; `delay_us` is how many
    microseconds it waits for them, None where it merges nothing. `threads` are those of one instance.
    """

    batch_limit: int | None = None
    delay_us: int | None = None
    instances: int | None = None
    threads: int | None = None

    def __str__(self) -> str:
        return ", ".join(self._words()) or "no knobs"

    def _words(self) -> list[str]:
        found = []
        if self.instances is not None:
            found.append(f"{self.instances} instance{'s' * (self.instances > 1)}")
        if self.threads is not None:
            found.append(f"{self.threads} thread{'s' * (self.threads > 1)} each")
        if self.batch_limit == 1:
            found.append("no batching")
        elif self.batch_limit is not None:
            found.append(f"batches of {self.batch_limit} within {self.delay_us or 0} us")
        return found


class Knob(Record):
    """Something that the target heeds, and the values that are tried, ascending."""

    name: KnobName
    values: tuple[int, ...]


class Probe(Record):
    """One short load at one rate. `kept` is None where the client was the limit, so that it proves nothing.

    `batch_reached` and `queue_ms` are the server's own counters; None where it offers none.
    """

    rate: float
    kept: bool | None
    reason: str
    queries: int
    over: int
    p99: float | None
    batch_reached: float | None = None
    queue_ms: float | None = None


class TuneTrial(Record):
    """One setting and what it sustained. `rate` is the highest at which a probe kept the bound, None where none did.

    `ended early`: it did not reach the best rate so far, and `rate` is only a lower bound of what it can. `score` is
    what the sampler is told. `client_limited`: the client could not send faster, so the server may sustain more.
    """

    number: int
    setting: Setting
    status: Literal["measured", "ended early", "failed"]
    rate: float | None
    score: float
    reason: str
    client_limited: bool = False
    probes: tuple[Probe, ...] = ()
    seconds: float


class ConfirmRound(Record):
    """The version's own configuration and the winner at the same rate, one right after the other."""

    rate: float
    own: Probe
    new: Probe
    own_first: bool


class Confirmation(Record):
    """The interleaved comparison. `rate` is the highest at which both were compared to the end, None if none was.

    `chance` is how likely luck alone divides the rounds like this (exact permutation of their shares over the bound).
    """

    better: bool
    reason: str
    rate: float | None
    chance: float | None
    rounds: tuple[ConfirmRound, ...]


class TuneEvidence(Record):
    """A whole search. `outcome`: a better configuration, none better beyond noise, or none that keeps the bound.

    `best` numbers the trial with the highest rate; `seconds` are those of the trials and the confirmation.
    """

    schema_version: Literal[1] = 1
    model: str
    version: int
    version_digest: str
    bound: Bound
    judgement: Judgement
    outcome: Literal["better", "stays", "none"]
    own: Setting
    chosen: Setting
    knobs: tuple[Knob, ...]
    space: int
    best: int | None
    trials: tuple[TuneTrial, ...]
    confirmation: Confirmation | None
    seed: int
    probe_seconds: float
    protocol: str
    engine: str
    mode: str
    machine: str
    created: str
    command: tuple[str, ...]
    seconds: float
    sampler: str
    method: str
    remarks: tuple[str, ...] = ()
