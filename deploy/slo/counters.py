"""What the server says of itself: what it serves, and its counters before and after the load.

Owns the reading of Triton's metadata and statistics over either protocol. Another server of KServe v2 may offer no
statistics; then there are none. Called by run and tune.
"""

import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.errors import DeployError, UnfinishedError, UsageError
from deploy.serve.client import Protocol, connect, ended_after, patience, words_of
from deploy.serve.standing import no_server
from deploy.slo.records import ServerSide
from deploy.slo.wire import WireOutput

_SECONDS = 5.0
_STAGES = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedInput:
    """An input as the server declares it: its dtype in Triton's words, -1 for a size that may vary."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedMetadata:
    """A model as the server declares it; `versions` are those it would answer for."""

    versions: tuple[str, ...]
    inputs: tuple[ServedInput, ...]
    outputs: tuple[WireOutput, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """The counters of one model version since it was loaded; stages are (requests, nanoseconds).

    `version` is as the server numbers it, the one that it answers with where a request names none.
    """

    version: str
    requests: int
    failures: int
    executions: int
    inferences: int
    stages: dict[str, tuple[int, int]]
    batches: dict[int, int]


class ServerTalk:
    """Asks one server about one model, in one thread; close it, or use it in a `with` block."""

    def __init__(self, address: str, protocol: Protocol) -> None:
        self.address = address
        self.protocol = protocol
        _, self._client = connect(protocol, address, seconds=_SECONDS)
        self._patience = patience(protocol, _SECONDS)

    def __enter__(self) -> "ServerTalk":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def metadata(self, model: str, version: str) -> ServedMetadata:
        """What the server declares. Raises UsageError if it has no such model, UnfinishedError if it is not there."""
        from tritonclient.utils import InferenceServerException

        as_json = {"as_json": True} if self.protocol == "grpc" else {}
        try:
            with ended_after(self.protocol, _SECONDS):
                found = self._client.get_model_metadata(model, version, **as_json, **self._patience)
        except InferenceServerException as error:
            if not _means_absent(error.message()):
                raise no_server(self.address, self.protocol, words_of(error)) from error
            called = f"{model}:{version}" if version else model
            raise UsageError(
                f"the server at {self.address} does not serve {called}: {error.message()}",
                expected=f"a server that is ready for {called}",
                fix="wait until it is ready, or name what it serves",
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            # The HTTP client has errors of its own for an answer that is none; they derive from these.
            raise no_server(self.address, self.protocol, words_of(error)) from error
        try:
            return ServedMetadata(
                versions=tuple(found.get("versions", ())),
                inputs=tuple(ServedInput(**_tensor(one)) for one in found["inputs"]),
                outputs=tuple(WireOutput(**_tensor(one)) for one in found["outputs"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnfinishedError(
                f"what the server at {self.address} says of {model} does not describe a model: {found!r:.200}",
                expected="its inputs and outputs with names, datatypes and shapes, as KServe v2 has them",
                fix="check --url: a gateway may have answered in the server's place",
            ) from error

    def require_single(self, model: str, version: str) -> None:
        """Raises UsageError if the model answers no single request: it would fail whatever the server does.

        A server without Triton's extension says nothing of it.
        """
        as_json = {"as_json": True} if self.protocol == "grpc" else {}
        try:
            with ended_after(self.protocol, _SECONDS):
                found = self._client.get_model_config(model, version, **as_json, **self._patience)
            config = found.get("config", found)
            sequences = "sequence_batching" in config
            decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled"))
        except Exception:  # noqa: BLE001 - an extension, and whatever a server sends in its place
            return
        if sequences or decoupled:
            what = "takes requests that belong to sequences" if sequences else "sends several answers to a request"
            raise UsageError(
                f"{model} at {self.address} {what}",
                expected="a model that answers each request by itself",
                fix="ask a language model with --llm; of others a load of single requests says nothing",
            )

    def counters(self, model: str, version: str) -> Counters | None:
        """The counters now; None where the server has none that can be read, or is gone."""
        as_json = {"as_json": True} if self.protocol == "grpc" else {}
        try:
            with ended_after(self.protocol, _SECONDS):
                found = self._client.get_inference_statistics(model, version, **as_json, **self._patience)
            # Triton lists every version that is loaded; unasked, it answers with the latest.
            return max(map(_counters, found.get("model_stats", [])), key=_number, default=None)
        except Exception:  # noqa: BLE001 - they explain a run and decide nothing, whatever a server sends in their place
            return None

    def answering(self, model: str) -> str:
        """The version that answers where a request names none, by the metadata; empty where the server says none."""
        try:
            return max(self.metadata(model, "").versions, key=_as_number, default="")
        except DeployError:  # gone at the end of a run: its queries have failed then, and are told
            return ""


def compare(before: Counters | None, after: Counters | None) -> ServerSide | None:
    """What the server counted between two readings; None if either is missing.

    A server that began anew in between counts from zero: then all of `after` is taken, and said to be a restart. So it
    is with another version that took the place of the one before.
    """
    if before is None or after is None:
        return None
    restarted = after.requests < before.requests
    replaced = (before.version, after.version) if before.version != after.version else None
    if restarted or replaced:
        before = Counters(
            version=after.version, requests=0, failures=0, executions=0, inferences=0, stages={}, batches={}
        )
    executions = after.executions - before.executions
    inferences = after.inferences - before.inferences
    batches = {size: count - before.batches.get(size, 0) for size, count in sorted(after.batches.items())}
    return ServerSide(
        requests=after.requests - before.requests,
        failures=after.failures - before.failures,
        executions=executions,
        batch_reached=inferences / executions if executions else 0.0,
        batches={size: count for size, count in batches.items() if count},
        restarted=restarted and not replaced,
        replaced=replaced,
        **{stage: _mean_ms(before.stages.get(stage, (0, 0)), after.stages[stage]) for stage in _STAGES},
    )


def _means_absent(said: str) -> bool:
    """Whether a server's words say that it has no such model, rather than that it is not there."""
    lowered = said.lower()
    return any(
        words in lowered for words in ("unknown model", "not found", "not ready", "unavailable model", "no version")
    )


def _number(counters: Counters) -> int:
    return _as_number(counters.version)


def _as_number(version: str) -> int:
    """Where a version stands among the others of its model; one without a number comes first."""
    return int(version) if version.isdecimal() else -1


def _mean_ms(before: tuple[int, int], after: tuple[int, int]) -> float:
    count, nanoseconds = after[0] - before[0], after[1] - before[1]
    return nanoseconds / count / 1e6 if count else 0.0


def _tensor(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": found["name"],
        "datatype": found["datatype"],
        "shape": tuple(int(size) for size in found.get("shape", ())),
    }


def _counters(found: Mapping[str, Any]) -> Counters:
    """Over gRPC numbers come as text, and zeros are left out."""
    stats = found.get("inference_stats", {})

    def counted(stage: str) -> tuple[int, int]:
        one = stats.get(stage, {})
        return int(one.get("count", 0)), int(one.get("ns", 0))

    failures = counted("fail")[0]
    return Counters(
        version=str(found.get("version", "")),
        requests=counted("success")[0] + failures,
        failures=failures,
        executions=int(found.get("execution_count", 0)),
        inferences=int(found.get("inference_count", 0)),
        stages={stage: counted(stage) for stage in _STAGES},
        batches={
            int(one["batch_size"]): int(one.get("compute_infer", {}).get("count", 0))
            for one in found.get("batch_stats", ())
        },
    )
