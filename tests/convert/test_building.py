"""An AOTInductor archive is built for a release only by that release's own torch; each refusal says what to do."""

import pytest

from deploy.convert.building import aoti_obstacle
from deploy.errors import DeployError, MissingError, UsageError
from deploy.targets import all_targets, find_target, same_torch

OF_2608 = "2.14.0a0+4fdf77b940.nv26.08"


def obstacle(target: str, torch: str = "2.13.0+cpu") -> DeployError:
    found = aoti_obstacle(find_target(target), torch=torch)
    assert found is not None
    return found


def test_this_machines_own_target_takes_this_machines_torch() -> None:
    assert aoti_obstacle(find_target("local-cpu")) is None


def test_the_targets_own_torch_is_let_through() -> None:
    assert aoti_obstacle(find_target("26.08-cpu"), torch=OF_2608) is None
    assert aoti_obstacle(find_target("26.06-cpu"), torch="2.12.0a0+5aff3928d8.nv26.5") is None


def test_another_torch_is_something_missing_here_and_the_image_is_named() -> None:
    found = obstacle("26.08-cpu")
    assert isinstance(found, MissingError)
    assert f"26.08-cpu runs torch {OF_2608}, and the one here is 2.13.0+cpu" in found.found
    assert "nvcr.io/nvidia/pytorch:26.08-py3" in found.fix
    assert "--formats onnx" in found.fix


def test_a_torch_that_is_not_known_is_refused_by_name() -> None:
    found = obstacle("26.09-cpu", OF_2608)
    assert isinstance(found, UsageError)
    assert "which torch 26.09-cpu runs is not known" in found.found
    assert found.expected.endswith("26.03-cpu, 26.04-cpu, 26.05-cpu, 26.06-cpu, 26.07-cpu, 26.08-cpu")


def test_a_gpu_and_a_release_without_the_backend_are_refused() -> None:
    assert "compiled on the device they run on" in obstacle("26.08-cuda-sm90", OF_2608).found
    assert "24.10-cpu cannot load" in obstacle("24.10-cpu").found
    assert "26.03-cpu" in obstacle("24.10-cpu").expected


def test_no_release_takes_a_torch_of_pypi() -> None:
    takers = [name for name, target in all_targets().items() if aoti_obstacle(target, torch="2.13.0") is None]
    assert takers == ["local-cpu"]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (OF_2608, True),
        ("2.14.0a0+4fdf77b940.nv26.8.63802676", True),
        ("2.14.0a0+4fdf77b940.nv26.09", False),
        ("2.14.0a0+b2c75dd062.nv26.08", False),
        ("2.14.1a0+4fdf77b940.nv26.08", False),
        ("2.14.0a0", False),
        ("2.14.0+cpu", False),
    ],
)
def test_builds_of_nvidia_are_told_apart_by_release_commit_and_month(other: str, same: bool) -> None:
    assert same_torch(OF_2608, other) is same


def test_other_builds_are_the_same_to_the_letter_only() -> None:
    assert same_torch("2.13.0+cpu", "2.13.0+cpu")
    assert not same_torch("2.13.0+cpu", "2.13.0+cu130")
