"""vLLM in a process of its own, in the environment that holds it: requests come in as JSON lines, tokens go out so.

Owns the engine. Started by `model.py` beside it, with another Python than the server's: it imports nothing of deploy.
The first line in holds the engine arguments, the adapters and the digests of all files; the first line out `ready`,
or `fatal` and why.
"""

import asyncio
import hashlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any, TextIO


class Engine:
    """The engine and the requests under way; every answer is one line."""

    def __init__(self, arguments: dict[str, Any], adapters: dict[str, str], lines: TextIO) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._lines = lines
        self._adapters = adapters
        self._running: dict[str, asyncio.Task[None]] = {}
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))

    def say(self, **answer: Any) -> None:
        """Write one line."""
        self._lines.write(json.dumps(answer) + "\n")
        self._lines.flush()

    def take(self, message: dict[str, Any]) -> None:
        """Begin a request, or abort the one that `abort` names."""
        if "abort" in message:
            if task := self._running.get(message["abort"]):
                task.cancel()
            return
        task = asyncio.get_running_loop().create_task(self._answer(message))
        self._running[message["id"]] = task
        task.add_done_callback(lambda _: self._running.pop(message["id"], None))

    async def _answer(self, message: dict[str, Any]) -> None:
        try:
            await self._generate(message)
        except asyncio.CancelledError:
            self.say(id=message["id"], error="cancelled")
        except Exception as error:  # noqa: BLE001 - the client is told, the engine lives on
            self.say(id=message["id"], error=f"{type(error).__name__}: {error}")

    async def _generate(self, message: dict[str, Any]) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(**message["sampling"])
        sampling.output_kind = RequestOutputKind.DELTA if message["stream"] else RequestOutputKind.FINAL_ONLY
        prompt = {"prompt": message["prompt"]}
        async for found in self._llm.generate(prompt, sampling, message["id"], lora_request=self._lora(message)):
            self.say(
                id=message["id"],
                finished=found.finished,
                prompt_tokens=len(found.prompt_token_ids or ()),
                outputs=[_output(one) for one in found.outputs],
            )

    def _lora(self, message: dict[str, Any]) -> Any:
        from vllm.lora.request import LoRARequest

        name = message.get("lora")
        if name is None:
            return None
        return LoRARequest(name, list(self._adapters).index(name) + 1, self._adapters[name])

    def close(self) -> None:
        """End the engine and its own processes."""
        self._llm.shutdown()


def _output(one: Any) -> dict[str, Any]:
    return {
        "text": one.text,
        "tokens": list(one.token_ids),
        "finish_reason": str(one.finish_reason),
        "cumulative_logprob": one.cumulative_logprob,
        "logprobs": [_logprobs(place) for place in one.logprobs] if one.logprobs is not None else None,
    }


def _logprobs(place: dict[int, Any]) -> dict[str, Any]:
    return {
        str(token): {"logprob": found.logprob, "rank": found.rank, "decoded_token": found.decoded_token}
        for token, found in place.items()
    }


def check_digests(expected: dict[str, str]) -> None:
    """Raises ValueError for a file that is another than was proven."""
    for name, digest in expected.items():
        with Path(name).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != digest:
            raise ValueError(f"{name} is not the file that was proven: its sha256 is {found}, expected {digest}")


async def serve(lines: TextIO) -> None:
    """Serve until there is no more to read."""
    first = json.loads(sys.stdin.readline())
    try:
        check_digests(first["digests"])
        engine = Engine(first["arguments"], first["adapters"], lines)
    except BaseException as error:
        lines.write(json.dumps({"fatal": f"{type(error).__name__}: {error}"}) + "\n")
        lines.flush()
        raise
    import vllm

    engine.say(ready=vllm.__version__)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(engine.take, json.loads(line))
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=read, daemon=True).start()
    await ended.wait()
    engine.close()


def main() -> None:
    """Keep the pipe for answers, and let whatever else is printed go to the log."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asyncio.run(serve(lines))


if __name__ == "__main__":
    main()
