"""The place where a fault begins: in eager's values, in a program, or in what a compiler makes of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploy.checkpoint.model import Checkpoint
from deploy.convert.model import Artifact
from deploy.errors import UnfinishedError
from deploy.validate.locate import Suspect
from deploy.validate.prefixes import find_wrong_operator
from deploy.validate.trace import find_departure, module_steps, module_values
from tests.validate.models import TinyNet, seeded_tiny
from tests.validate.mutants import MUTANTS, changed
from tests.validate.rig import Rig, convert, image_rig

IMAGE = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return image_rig(seeded_tiny(), "tiny", tmp_path_factory.mktemp("rig"))


def values_of(module: nn.Module) -> dict[str, np.ndarray]:
    """Every module's output in single precision, under names that say nothing."""
    return {f"value {number}": value for number, value in enumerate(module_values(module, [IMAGE]).values())}


def steps() -> Any:
    return module_steps(seeded_tiny().double(), seeded_tiny(), [IMAGE])


def test_eagers_own_values_are_all_found() -> None:
    departure = find_departure(steps(), values_of(seeded_tiny()))
    assert departure.module is None
    assert departure.after == "coarse"


def use_tanh(module: TinyNet) -> None:
    module.act = nn.GELU(approximate="tanh")


def double_stem(module: TinyNet) -> None:
    module.stem.weight = nn.Parameter(module.stem.weight.detach() * 2)


@pytest.mark.parametrize(
    ("change", "first", "after"), [(use_tanh, "act", "norm"), (double_stem, "stem_norm", "the inputs")]
)
def test_the_first_module_with_another_value_is_found(
    change: Callable[[TinyNet], None], first: str, after: str
) -> None:
    module = seeded_tiny()
    change(module)
    departure = find_departure(steps(), values_of(module))
    assert departure.module is not None
    assert (departure.module.name, departure.after) == (first, after)
    assert departure.error > 1e-5


def test_a_convolution_whose_norm_is_folded_into_it_is_not_missed() -> None:
    values = values_of(seeded_tiny())
    folded = {name: value for name, value in values.items() if name not in ("value 0", "value 3")}
    assert [step.name for step in steps()[:4]] == ["stem", "stem_norm", "stem_act", "conv"]
    assert find_departure(steps(), folded).module is None


def test_a_wrong_program_is_told_from_a_wrong_artifact(rig: Rig, tmp_path: Path) -> None:
    artifact = changed(rig, use_tanh, tmp_path / "mutant")
    program = replace(rig.program, path=tmp_path / "mutant" / "program.pt2", checkpoint=None)
    evidence = rig.judge(artifact, program=program)
    assert evidence.place is not None
    assert evidence.place.kind == "exported program"
    assert "not act GELU(approximate='none')" in evidence.place.message
    right_program = rig.judge(artifact, program=rig.program)
    assert right_program.place is not None
    assert right_program.place.kind == "ONNX graph"


def miscompile(wrong: Any, right: Any) -> Callable[[Any], Callable[..., Any]]:
    """A compiler that takes one operator for another."""

    def compile(exported: Any) -> Callable[..., Any]:
        module = exported.module()
        for node in module.graph.nodes:
            if node.target == right:
                node.target = wrong
        module.recompile()
        return module  # type: ignore[no-any-return]

    return compile


def test_bisection_finds_the_operator_that_a_compiler_gets_wrong(rig: Rig) -> None:
    compile = miscompile(torch.ops.aten.silu.default, torch.ops.aten.gelu.default)
    place = find_wrong_operator(rig.program, [IMAGE], compile=compile, seconds=60)
    assert (place.kind, place.name, place.reproduced) == ("program prefix", "gelu", True)
    assert "right up to layer_norm" in place.message


def test_a_bisection_without_time_says_how_far_it_came(rig: Rig) -> None:
    compile = miscompile(torch.ops.aten.silu.default, torch.ops.aten.gelu.default)
    place = find_wrong_operator(rig.program, [IMAGE], compile=compile, seconds=0)
    assert place.reproduced
    assert "time for the search ran out" in place.message


def test_a_fault_that_does_not_come_again_is_marked_so(rig: Rig) -> None:
    place = find_wrong_operator(rig.program, [IMAGE], compile=lambda exported: exported.module(), seconds=60)
    assert not place.reproduced
    assert "compiled again" in place.message


@pytest.mark.slow
def test_an_archive_of_another_program_is_compiled_again_and_found_right(rig: Rig, tmp_path: Path) -> None:
    changed(rig, use_tanh, tmp_path / "mutant")
    program = replace(rig.program, path=tmp_path / "mutant" / "program.pt2", checkpoint=None)
    archive = convert(program, "aoti", tmp_path / "archive")
    evidence = rig.judge(archive, program=rig.program)
    assert evidence.place is not None
    assert (evidence.place.kind, evidence.place.reproduced) == ("program prefix", False)
    wrong_program = rig.judge(archive, program=program)
    assert wrong_program.place is not None
    assert wrong_program.place.kind == "exported program"


def test_a_search_that_fails_leaves_the_verdict(rig: Rig, tmp_path: Path) -> None:
    clean = convert(rig.program, "onnx", tmp_path / "clean")
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "ReLU for ReLU6")
    artifact: Artifact = mutant.make(rig, clean, tmp_path / "mutant")
    (tmp_path / "not-a-program.pt2").write_bytes(b"no")
    evidence = rig.judge(artifact, program=replace(rig.program, path=tmp_path / "not-a-program.pt2"))
    assert not evidence.judgement.passed
    assert evidence.place is not None
    assert (evidence.place.kind, evidence.place.reproduced) == ("unknown", False)
    assert "the search for the cause failed" in evidence.place.message


def meet_a_full_disk(checkpoint: Checkpoint, suspect: Suspect) -> None:
    raise UnfinishedError("the disk is full")


def test_a_search_that_meets_a_full_disk_leaves_the_verdict_too(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "ReLU for ReLU6")
    artifact = mutant.make(rig, convert(rig.program, "onnx", tmp_path / "clean"), tmp_path / "mutant")
    monkeypatch.setattr("deploy.validate.run.locate", meet_a_full_disk)
    evidence = rig.judge(artifact)
    assert not evidence.judgement.passed
    assert evidence.place is not None
    assert evidence.place.message == "the search for the cause failed: the disk is full"
