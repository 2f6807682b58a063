"""Which failed proofs are a reason to convert once more, and to what."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.convert.aoti_prepack import PACKED
from deploy.convert.job import CONVERTERS, converters_for
from deploy.convert.model import Artifact, Format
from deploy.convert.precision import Lowering
from deploy.convert.tactics import UNPACKED
from deploy.doubts import kept_work, packed_weights


def artifact(format_: Format, *, packed: bool = False, reused: str | None = None, kept: str | None = None) -> Artifact:
    return Artifact(
        format=format_, folder=Path(), files=("model",), seconds=0.0, peak_memory=0,
        details={"torch": "2", **(PACKED if packed else {})}, reused=reused, kept=kept,
    )  # fmt: skip


def proven(
    *artifacts: tuple[Artifact, bool], exported_before: str | None = None, behaviour: str = "unconfirmed"
) -> tuple[Any, Any]:
    """A conversion and its proof: each artifact, and whether it passed."""
    conversion = SimpleNamespace(
        artifacts={one.format: one for one, _ in artifacts}, program=SimpleNamespace(reused=exported_before)
    )
    evidence = {one.format: SimpleNamespace(judgement=SimpleNamespace(passed=passed)) for one, passed in artifacts}
    return conversion, SimpleNamespace(evidence=evidence, behaviour=SimpleNamespace(status=behaviour))


def test_packed_weights_are_in_doubt_where_aotinductor_alone_is_wrong() -> None:
    packed = artifact("aoti", packed=True, kept="a key")

    for others in ([], [(artifact("onnx"), True)]):
        doubt = packed_weights(*proven((packed, False), *others))

        assert doubt is not None
        assert (doubt.packed, doubt.keys) == (False, ("a key",))
        assert "packed weights" in doubt.says


@pytest.mark.parametrize(
    "artifacts",
    [
        [(artifact("aoti", packed=True), True), (artifact("onnx"), False)],
        [(artifact("aoti", packed=True), False), (artifact("onnx"), False)],
        [(artifact("aoti"), False), (artifact("onnx"), True)],
    ],
    ids=["it passed", "nothing passed", "not packed"],
)
def test_packed_weights_are_not_in_doubt(artifacts: list[tuple[Artifact, bool]]) -> None:
    assert packed_weights(*proven(*artifacts)) is None


def test_nothing_that_was_made_is_in_doubt_where_eager_itself_is_refuted() -> None:
    wrong = artifact("aoti", packed=True, reused="code")

    for doubt in (kept_work, packed_weights):
        assert doubt(*proven((wrong, False))) is not None
        assert doubt(*proven((wrong, False), behaviour="refuted")) is None


def test_work_of_before_is_in_doubt_and_packs_again() -> None:
    wrong, right = artifact("aoti", packed=True, reused="code"), artifact("onnx", reused="graph")

    doubt = kept_work(*proven((wrong, False), (right, True), exported_before="program"))

    assert doubt is not None
    assert (doubt.packed, set(doubt.keys)) == (True, {"code", "program"})
    assert kept_work(*proven((artifact("aoti", kept="code"), False))) is None


def test_a_conversion_without_packing_takes_the_tactic_of_that_name() -> None:
    checkpoint: Any = None
    packing = converters_for(checkpoint, 4, Lowering())
    without: Any = converters_for(checkpoint, 4, Lowering(), packed=False)

    assert packing == CONVERTERS
    assert without["aoti"].keywords == {"tactic": UNPACKED}
    assert without["onnx"] is CONVERTERS["onnx"]
