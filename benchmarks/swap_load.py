"""Clients that ask a server without a pause and know what either version would answer, while versions are swapped.

Owns who asks and what became of each request; who swaps is in `swap`. Called by it, and by the test of swapping.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy.serve.client import Protocol, connect, patience

_DEADLINE = 20.0
# Both versions' answers are known to about 1e-6; they differ by far more than this.
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Rows to ask one at a time, and what each version answers to each."""

    model: str
    rows: np.ndarray
    expected: Mapping[int, np.ndarray]

    def __post_init__(self) -> None:
        first, *others = self.expected.values()
        nearest = min((float(np.abs(first - other).max(axis=1).min()) for other in others), default=np.inf)
        assert nearest > 100 * TOLERANCE, "the versions' answers must differ for every row, or a wrong one hides"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One request: when it was sent and answered (seconds, monotonic), by which version, and whether it was right.

    `version` is None where it failed, for the reason in `error`.
    """

    sent: float
    done: float
    version: int | None
    right: bool
    error: str = ""


@dataclass(slots=True, kw_only=True)
class Tally:
    """Every answer to the clients of one protocol."""

    protocol: Protocol
    answers: list[Answer] = field(default_factory=list)

    @property
    def sent(self) -> int:
        """The requests."""
        return len(self.answers)

    @property
    def failed(self) -> int:
        """Those without an answer."""
        return sum(one.version is None for one in self.answers)

    @property
    def wrong(self) -> int:
        """Those whose values are not what the version that answered computes, or from a version nobody promoted."""
        return sum(one.version is not None and not one.right for one in self.answers)

    @property
    def by_version(self) -> dict[int, int]:
        """How many each version answered."""
        return dict(sorted(Counter(one.version for one in self.answers if one.version is not None).items()))

    @property
    def errors(self) -> dict[str, int]:
        """What was said to those that failed."""
        return dict(Counter(one.error for one in self.answers if one.error))

    def late(self, version: int, since: float, until: float) -> int:
        """The requests sent in that time and not answered by `version`, though it alone was promoted."""
        return sum(since <= one.sent < until and one.version != version for one in self.answers)

    def first_from(self, version: int, since: float) -> float | None:
        """Seconds from `since` to the first answer by `version`."""
        return min(
            (one.done - since for one in self.answers if one.version == version and one.done > since), default=None
        )


@contextmanager
def asking(addresses: Mapping[Protocol, str], question: Question, *, clients: int) -> Iterator[list[Tally]]:
    """Closed-loop clients of each protocol for as long as the block lasts; the tallies are whole after it."""
    stop = threading.Event()
    tallies = [Tally(protocol=protocol) for protocol in addresses]
    threads = [
        threading.Thread(target=_ask, args=(addresses[tally.protocol], question, tally, stop, number), daemon=True)
        for tally in tallies
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield tallies
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _ask(address: str, question: Question, tally: Tally, stop: threading.Event, number: int) -> None:
    module, client = connect(tally.protocol, address, seconds=_DEADLINE)
    order = np.random.default_rng(number)
    try:
        while not stop.is_set():
            row = int(order.integers(len(question.rows)))
            tally.answers.append(_one(module, client, question, row, tally.protocol))
    finally:
        client.close()


def _one(module: Any, client: Any, question: Question, row: int, protocol: Protocol) -> Answer:
    """One request without a version, as clients send it: the server chooses."""
    from tritonclient.utils import InferenceServerException

    images = question.rows[row : row + 1]
    tensor = module.InferInput("INPUT__0", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images)
    sent = time.monotonic()
    try:
        result = client.infer(question.model, [tensor], **patience(protocol, _DEADLINE))
    except (InferenceServerException, OSError) as error:
        said = error.message() if isinstance(error, InferenceServerException) else str(error)
        return Answer(sent=sent, done=time.monotonic(), version=None, right=False, error=str(said)[:160])
    done = time.monotonic()
    response = result.get_response()
    version = int(response["model_version"] if protocol == "http" else response.model_version)
    found = result.as_numpy("OUTPUT__0")
    expected = question.expected.get(version)
    right = expected is not None and found is not None and bool(np.abs(found[0] - expected[row]).max() <= TOLERANCE)
    return Answer(sent=sent, done=done, version=version, right=right)
