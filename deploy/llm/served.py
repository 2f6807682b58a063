"""A version served by a real Triton with the real vLLM behind it, asked as clients ask, its tokens judged.

Owns the ways of asking: `generate`, `generate_stream`, and all prompts at once. Called by `package` and by verify.
"""

import http.client
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

from deploy.errors import UnfinishedError
from deploy.evidence import Judgement, ServedCheck, ServedEvidence
from deploy.llm.records import Continuation, Reference, TokensEvidence
from deploy.llm.tokens import compare, judge_tokens
from deploy.repository.layout import Version
from deploy.serve.client import Client, ModelAddress, RequestFailed
from deploy.serve.engines import Engine
from deploy.serve.local import config_difference
from deploy.serve.memory import peak_memory
from deploy.serve.server import ServerOptions
from deploy.serve.serving import serving
from deploy.serve.vllm import RELEASE

_READY_SECONDS = 600.0
_ANSWER_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a server's answers came to."""

    tokens: TokensEvidence
    evidence: ServedEvidence


def check_served_llm(version: Version, engine: Engine, reference: Reference, *, staged: bool = False) -> Served:
    """Serve a version in a server of its own and judge its answers, the adapters' too.

    Raises UsageError if a published one has changed, ServerFailed if it does not get ready.
    """
    with serving(
        [version], engine=engine, options=ServerOptions(ready_seconds=_READY_SECONDS), staged=staged
    ) as server:
        asking = _Asking(address=server.http_address, version=version, reference=reference)
        ways = {"generate": asking.one_by_one(), "generate_stream": asking.streamed(), "all at once": asking.at_once()}
        with Client("http", server.http_address) as client:
            served_by = client.server_version()
            counted = client.statistics(ModelAddress(name=version.name, version=version.number, outputs=()))
        checks = tuple(_check(name, reference, found) for name, found in ways.items())
        vllm = RELEASE if engine.kind == "local" else "the server's own"
        everything = tuple(chain.from_iterable(ways.values()))
        tokens = TokensEvidence(
            judgement=judge_tokens(reference, ways["generate"]),
            reference=reference,
            continuations=ways["generate"],
            vllm=vllm,
        )
        evidence = ServedEvidence(
            judgement=_overall(checks, everything),
            mode=engine.mode,
            engine=f"tritonserver {served_by} ({engine.kind})",
            release=engine.release,
            backend=f"vllm (python-based, vLLM {RELEASE} on CPU)" if engine.kind == "local" else "vllm",
            config_difference=config_difference(version, engine),
            checks=checks,
            executions=counted.executions,
            inferences=counted.inferences,
            ready_seconds=server.ready_seconds,
            peak_memory=peak_memory(server.pid),
        )
    return Served(tokens=tokens, evidence=evidence)


def _check(name: str, reference: Reference, found: Sequence[Continuation]) -> ServedCheck:
    return ServedCheck(
        name=name, protocol="http", requests=len(found), rows=len(found), judgement=judge_tokens(reference, found)
    )


def _overall(checks: Sequence[ServedCheck], everything: Sequence[Continuation]) -> Judgement:
    for check in checks:
        if not check.judgement.passed:
            return Judgement(verdict=check.judgement.verdict, reason=f"{check.name}: {check.judgement.reason}")
    tokens = sum(one.compared for one in everything)
    return Judgement.yes(f"{tokens} tokens in {len(checks)} ways of asking, all equal to transformers'")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asking:
    """A running server's model, and what it is asked."""

    address: str
    version: Version
    reference: Reference

    def one_by_one(self) -> tuple[Continuation, ...]:
        """Each prompt alone, the whole answer at once."""
        return tuple(self._whole(number) for number in self._numbers())

    def at_once(self) -> tuple[Continuation, ...]:
        """All prompts together, so that vLLM batches them."""
        with ThreadPoolExecutor(max_workers=len(self.reference.prompts)) as threads:
            return tuple(threads.map(self._whole, self._numbers()))

    def streamed(self) -> tuple[Continuation, ...]:
        """Each prompt alone, token by token."""
        found = []
        for number in self._numbers():
            body = self._ask("generate_stream", number, stream=True)
            events = [json.loads(line[5:]) for line in body.splitlines() if line.startswith(b"data:")]
            found.append(compare(self.reference, number, list(chain.from_iterable(map(_tokens, events)))))
        return tuple(found)

    def _numbers(self) -> range:
        return range(len(self.reference.prompts))

    def _whole(self, number: int) -> Continuation:
        answer = json.loads(self._ask("generate", number, stream=False))
        return compare(self.reference, number, list(_tokens(answer)))

    def _ask(self, verb: str, number: int, *, stream: bool) -> bytes:
        prompt = self.reference.prompts[number]
        # No end before the end: each continuation is as long as the reference's.
        sampling: dict[str, Any] = {
            "temperature": 0,
            "max_tokens": len(prompt.tokens),
            "ignore_eos": True,
            "logprobs": 0,
        }
        if prompt.adapter is not None:
            sampling["lora_name"] = prompt.adapter
        asked = {
            "text_input": prompt.text,
            "stream": stream,
            "sampling_parameters": json.dumps(sampling),
            "return_logprobs": True,
        }
        return self._post(f"/v2/models/{self.version.name}/versions/{self.version.number}/{verb}", json.dumps(asked))

    def _post(self, path: str, body: str) -> bytes:
        host, _, port = self.address.rpartition(":")
        connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=_ANSWER_SECONDS)
        try:
            connection.request("POST", path, body=body, headers={"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise RequestFailed(
                f"the server at {self.address} gave no answer: {error}", fix="see the server's log for its side"
            ) from error
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise RequestFailed(
                f"the server answered {response.status}: {answer[:500].decode(errors='replace')}",
                fix="see the server's log for its side",
            )
        return answer


def _tokens(answer: dict[str, Any]) -> Iterator[int]:
    """The tokens that were chosen, which only the log-probabilities name: of each place the entry of the one chosen."""
    if "error" in answer:
        raise UnfinishedError(
            f"the server gave an error instead of tokens: {answer['error']}", fix="see the server's log for its side"
        )
    for place in json.loads(answer.get("logprobs") or "null") or ():
        # With `logprobs` 0 there is no other entry.
        yield int(next(iter(place)))
