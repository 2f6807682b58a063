"""What is done to a repository that a server reads, by mistake and as it should be, each once under load and counted.

Owns the deeds; the load is in `swap_load`. Called by `swap`, and by the test of swapping.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.swap_load import asking
from benchmarks.swap_world import NAME, VERSIONS, World
from deploy.evidence import Judgement, Verdict
from deploy.files import write_atomically
from deploy.repository.attest import attest
from deploy.repository.layout import Version
from deploy.repository.promotion import promote
from deploy.serve.client import PROTOCOLS, Client, ModelAddress, RequestFailed
from deploy.serve.server import ModelControl
from tests.release.versions import put_linear
from tests.serve.tiny import Linear

_BEFORE = 1.0
# Longer than the second between two polls, and than a load takes.
_AFTER = 6.0
_SLOWLY = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """Something done in one mode. `do` gives back what an onlooker sees beside the counts, in words."""

    name: str
    mode: ModelControl
    what: str
    do: Callable[[World, Client], str]

    def measure(self, world: World, *, clients: int, after: float = _AFTER) -> dict[str, Any]:
        """What the load met from a second before the deed to so many seconds after it."""
        addresses = {protocol: world.address(protocol) for protocol in PROTOCOLS}
        with (
            asking(addresses, world.question, clients=clients) as tallies,
            Client("grpc", world.address("grpc")) as one,
        ):
            time.sleep(_BEFORE)
            then = self.do(world, one)
            time.sleep(after)
        errors: dict[str, int] = {}
        for tally in tallies:
            for said, count in tally.errors.items():
                errors[said] = errors.get(said, 0) + count
        commonest = max(errors, key=lambda said: errors[said], default="")
        return {
            "mode": self.mode,
            "what": self.what,
            "sent": sum(tally.sent for tally in tallies),
            "failed": sum(tally.failed for tally in tallies),
            "wrong": sum(tally.wrong for tally in tallies),
            "then": "; ".join(part for part in (then, commonest and f"said: {commonest}") if part),
        }


def _model(world: World) -> Path:
    return world.repository / NAME


def _delete_served(world: World, client: Client) -> str:
    shutil.rmtree(_model(world) / "1")
    time.sleep(_SLOWLY)
    return f"version 1 is {'still' if world.ready(client, 1) else 'no longer'} served"


def _rename_model(world: World, client: Client) -> str:
    _model(world).rename(world.repository / f"{NAME}-old")
    time.sleep(_SLOWLY)
    return f"{NAME} is {'still' if world.ready(client, 1) else 'no longer'} served"


def _rewrite_config_slowly(world: World, client: Client) -> str:
    path = _model(world) / "config.pbtxt"
    text = path.read_text()
    with path.open("w") as stream:
        stream.write(text[: len(text) // 2])
        stream.flush()
        time.sleep(_SLOWLY)
        during = world.ready(client, 1)
        stream.write(text[len(text) // 2 :])
    return f"half written, version 1 was {'still' if during else 'not'} served"


def _overwrite_artifact(world: World, client: Client) -> str:
    (_model(world) / "1" / "model.onnx").write_bytes(VERSIONS[2].onnx())
    if world.mode == "explicit":
        time.sleep(_SLOWLY)
        client.load(NAME)
        return "wrong from the next load call on"
    return "wrong from the next poll on"


def _name_missing_version(world: World, client: Client) -> str:
    path = _model(world) / "config.pbtxt"
    path.write_text(path.read_text().replace("versions: 1", "versions: 9"))
    said = ""
    if world.mode == "explicit":
        try:
            client.load(NAME)
        except RequestFailed:
            said = "the load call is refused; "
    time.sleep(_SLOWLY)
    return f"{said}version 1 is {'still' if world.ready(client, 1) else 'no longer'} served"


def _copy_in_slowly(world: World, client: Client) -> str:
    other = world.repository / "copied"
    (other / "1").mkdir(parents=True)
    text = (_model(world) / "1" / "config.pbtxt").read_text()
    (other / "config.pbtxt").write_text(text.replace(f'name: "{NAME}"', 'name: "copied"').split("model_warmup", 1)[0])
    (other / "1" / "labels.txt").write_text("a\nb\nc\n")
    time.sleep(_SLOWLY)
    (other / "1" / "model.onnx").write_bytes(VERSIONS[1].onnx())
    time.sleep(_SLOWLY)
    address = ModelAddress(name="copied", version=1, outputs=())
    try:
        ready = client.ready(address)
    except RequestFailed:
        ready = False
    return f"a poll met it half copied; {_SLOWLY:g} s after the last byte it is {'' if ready else 'not '}served"


def _name_the_version(world: World, client: Client) -> str:
    address = ModelAddress(name=NAME, version=1, outputs=("OUTPUT__0",))
    row = {"INPUT__0": world.question.rows[:1]}
    client.infer(address, row)
    promote(world.repository, NAME, 2)
    client.load(NAME)
    time.sleep(1.0)
    try:
        client.infer(address, row)
    except RequestFailed:
        return "such a client is refused after the swap; the load, which names none, is not"
    return "such a client is still answered"


def _publish(world: World, client: Client) -> str:
    version = put_linear(world.repository, Linear(seed=3))
    time.sleep(_SLOWLY)
    return f"{version} is {'' if world.ready(client, version.number) else 'not '}served, version 1 still is"


def _attest(world: World, client: Client) -> str:
    version = Version(repository=world.repository, name=NAME, number=1)
    attest(version, "note", Judgement(verdict=Verdict.PASS, reason="written while it is served"))
    time.sleep(_SLOWLY)
    return f"version 1 is {'still' if world.ready(client, 1) else 'no longer'} served"


def _touch_config(world: World, client: Client) -> str:
    path = _model(world) / "config.pbtxt"
    write_atomically(path, path.read_bytes())
    time.sleep(_SLOWLY)
    return f"it is loaded again; version 1 is {'still' if world.ready(client, 1) else 'no longer'} served"


HARMLESS = (
    Deed(name="publish", mode="poll", what="deployctl publishes a third version", do=_publish),
    Deed(name="attest", mode="poll", what="an attestation is written", do=_attest),
    Deed(name="touch", mode="poll", what="config.pbtxt is replaced by the same text", do=_touch_config),
)
MISTAKES = (
    Deed(name="delete", mode="poll", what="the served version's folder is deleted", do=_delete_served),
    Deed(name="delete-explicit", mode="explicit", what="the served version's folder is deleted", do=_delete_served),
    Deed(name="rename", mode="poll", what="the model's folder is renamed", do=_rename_model),
    Deed(name="rewrite", mode="poll", what="config.pbtxt is written in place, slowly", do=_rewrite_config_slowly),
    Deed(name="artifact", mode="poll", what="the artifact is overwritten", do=_overwrite_artifact),
    Deed(name="artifact-explicit", mode="explicit", what="the artifact is overwritten", do=_overwrite_artifact),
    Deed(name="missing", mode="poll", what="the config names a version that is not there", do=_name_missing_version),
    Deed(
        name="missing-explicit",
        mode="explicit",
        what="the config names a version that is not there",
        do=_name_missing_version,
    ),
    Deed(name="copy", mode="poll", what="a new model is copied in file by file", do=_copy_in_slowly),
    Deed(name="named", mode="explicit", what="a client names the version it wants", do=_name_the_version),
)
