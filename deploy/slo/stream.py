"""Answers that come token by token: asked over `generate_stream`, each token's arrival noted.

Owns the wire and what it writes down. A query's record is written before its end is told, so whoever knows of the end
finds it. Called by `generator`, inside its child process, and by `load`.
"""

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.slo.wire import LONGEST_WORDS, Done, Ended, judged

STREAMS = "streams.jsonl"
_DATA = b"data:"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamQuestion:
    """What a language model is asked: prompts in turn, each continued greedily by exactly `tokens` tokens."""

    prompts: tuple[str, ...]
    tokens: int

    def bodies(self) -> tuple[bytes, ...]:
        """The JSON body of each prompt's request."""
        sampling = {"temperature": 0, "max_tokens": self.tokens, "ignore_eos": True}
        said = {"stream": True, "sampling_parameters": json.dumps(sampling), "return_num_output_tokens": True}
        return tuple(json.dumps({"text_input": prompt, **said}).encode() for prompt in self.prompts)


@dataclass(slots=True)
class _Arrivals:
    """When the tokens of one answer came, as monotonic seconds, and how many came at each moment."""

    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    error: str | None = None
    version: str = ""

    def read(self, line: bytes, now: float) -> None:
        """Take in one line of the stream; one that says nothing that can be read is an error of it."""
        if self.error is None:
            self.error = judged(lambda: Ended(self._take(line, now))).problem

    def _take(self, line: bytes, now: float) -> str | None:
        """The error that the line tells, None if it tells none."""
        if not line.startswith(_DATA):
            return None
        event = json.loads(line[len(_DATA) :])
        if "error" in event:
            return str(event["error"])[:LONGEST_WORDS]
        self.version = str(event.get("model_version", self.version))
        if count := _count(event):
            self.times.append(now)
            self.tokens.append(count)
        return None

    def problem(self, wanted: int) -> str | None:
        """Why this is no answer, None if it is one."""
        if self.error is not None:
            return f"stream: {self.error}"
        found = sum(self.tokens)
        return None if found == wanted else f"stream: {found} tokens came of {wanted}"

    def record(self, number: int, sent: float) -> dict[str, Any]:
        """What is written down of the query: seconds from its sending, and the gaps between moments per token."""
        gaps = [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]
        spread = [gap / count for gap, count in zip(gaps, self.tokens[1:], strict=True) for _ in range(count)]
        return {"n": number, "first": self.times[0] - sent, "tokens": sum(self.tokens), "gaps": spread}


class StreamWire:
    """HTTP with `generate_stream`, as many connections as queries are under way."""

    def __init__(self, address: str, path: str, question: StreamQuestion, *, deadline: float, folder: Path) -> None:
        self._url = f"http://{address}{path}"
        self._bodies = question.bodies()
        self._wanted = question.tokens
        self._deadline = deadline
        self._count = 0
        self._file = (folder / STREAMS).open("w", buffering=1)
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="streams", daemon=True)
        self._thread.start()
        self._session: Any = asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    def send(self, index: int, done: Done) -> None:
        """Hand the query to the event loop; `done` is called from its thread. Called in the order of the schedule."""
        number, self._count = self._count, self._count + 1
        self._loop.call_soon_threadsafe(self._start, number, index, time.monotonic(), done)

    def close(self) -> None:
        """Close the connections; what is under way fails."""
        asyncio.run_coroutine_threadsafe(self._session.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._file.close()

    async def _open(self) -> Any:
        import aiohttp

        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0),
            timeout=aiohttp.ClientTimeout(total=self._deadline),
        )

    def _start(self, number: int, index: int, sent: float, done: Done) -> None:
        task = self._loop.create_task(self._ask(number, index, sent, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, number: int, index: int, sent: float, done: Done) -> None:
        arrivals, headers = _Arrivals(), {"Content-Type": "application/json"}
        try:
            async with self._session.post(self._url, data=self._bodies[index], headers=headers) as response:
                if response.status != 200:
                    said = (await response.read())[:LONGEST_WORDS].decode(errors="replace")
                    done(Ended(f"HTTP {response.status}: {said}"))
                    return
                async for line in response.content:
                    arrivals.read(line, time.monotonic())
        except TimeoutError:
            done(Ended("DEADLINE_EXCEEDED: no end within the deadline"))
            return
        except Exception as error:  # noqa: BLE001 - see `judged`; a line without end is none of aiohttp's ClientErrors
            done(Ended(f"{type(error).__name__}: {error}"[:LONGEST_WORDS]))
            return
        problem = arrivals.problem(self._wanted)
        if problem is None:
            self._file.write(json.dumps(arrivals.record(number, sent)) + "\n")
        done(Ended(problem, arrivals.version))


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """What came of one streamed query: seconds from its sending to the first token, and between tokens."""

    number: int
    first: float
    tokens: int
    gaps: tuple[float, ...]

    @property
    def gap(self) -> float:
        """The mean time per token after the first, in seconds; what MLPerf calls TPOT."""
        return sum(self.gaps) / len(self.gaps) if self.gaps else 0.0


def parse_streams(lines: Sequence[bytes]) -> Iterator[Streamed]:
    """The records of whole lines."""
    for line in lines:
        found = json.loads(line)
        yield Streamed(number=found["n"], first=found["first"], tokens=found["tokens"], gaps=tuple(found["gaps"]))


def _count(event: dict[str, Any]) -> int:
    """The tokens of an event: as the server counts them, else one where it has text."""
    counted = event.get("num_output_tokens")
    if counted is not None:
        return sum(counted) if isinstance(counted, list) else int(counted)
    return 1 if event.get("text_output") else 0
