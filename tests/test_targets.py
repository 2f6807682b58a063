"""The table of releases says how each fact is known, and a target's name says where a version will run."""

import json
import re

import pytest
from click.testing import CliRunner, Result

from deploy.cli.main import cli
from deploy.errors import UsageError
from deploy.releases import HOWS, Fact, read_releases
from deploy.targets import LOCAL_CPU, all_targets, find_target

TABLE = read_releases()
FACTS = [(release.triton, name, fact) for release in TABLE.releases for name, fact in release.facts.items()]
KNOWN_FROM_THE_NAME = {"container": "tritonserver:{}-py3", "vllm_container": "tritonserver:{}-vllm-python-py3"}


def test_the_releases_are_all_there_once_and_in_order() -> None:
    names = [release.triton for release in TABLE.releases]
    assert names == ["24.10", *(f"26.{month:02d}" for month in range(1, 12))]


def test_every_release_says_the_same_facts() -> None:
    assert len({tuple(release.facts) for release in TABLE.releases}) == 1


@pytest.mark.parametrize(("release", "name", "fact"), FACTS, ids=[f"{one[0]} {one[1]}" for one in FACTS])
def test_a_fact_has_a_source_and_is_null_exactly_where_it_is_unknown(release: str, name: str, fact: Fact) -> None:
    assert fact.how in HOWS
    assert fact.source in TABLE.sources
    assert (fact.value is None) == (fact.how == "unknown")
    if fact.value is not None and name in KNOWN_FROM_THE_NAME:
        assert str(fact.value).endswith(KNOWN_FROM_THE_NAME[name].format(release))


def test_sources_bugs_and_architectures_are_used_and_defined() -> None:
    assert set(TABLE.sources) == {fact.source for _, _, fact in FACTS}
    assert set(TABLE.bugs) == {bug for release in TABLE.releases for bug in release.bugs}
    named = {name for release in TABLE.releases for name in release.value("architectures")}
    assert named == {gpu.architecture for gpu in TABLE.gpus}


def test_torch_is_that_of_the_image_to_compile_in() -> None:
    """Triton 26.05 and 26.06 are built from the image of the month before."""
    assert {release.triton: image_month(release.value("pytorch_container")) for release in TABLE.releases} == {
        "24.10": None, "26.01": "26.01", "26.02": "26.02", "26.03": "26.03", "26.04": "26.04", "26.05": "26.04",
        "26.06": "26.05", "26.07": "26.07", "26.08": "26.08", "26.09": None, "26.10": None, "26.11": None,
    }  # fmt: skip
    for release in TABLE.releases:
        image, torch = release.value("pytorch_container"), release.value("torch")
        assert (torch is None) == (image is None)
        assert torch is None or torch.endswith(f".nv{image_month(image)}")


def image_month(image: str | None) -> str | None:
    match = re.fullmatch(r"nvcr\.io/nvidia/pytorch:(\d\d\.\d\d)-py3", image or "")
    return match[1] if match else None


def test_a_release_that_batches_archives_loads_them() -> None:
    assert all(target.aoti.loads or not target.aoti.batches for target in all_targets().values())
    batching = [release.triton for release in TABLE.releases if release.value("aoti_batches")]
    assert batching == [f"26.{month:02d}" for month in range(6, 12)]


def test_a_gpu_target_in_full() -> None:
    target = find_target("26.08-cuda-sm90")
    assert (target.device, target.sm, target.cuda, target.python) == ("cuda", 90, "13.4.1", "3.12.3")
    assert (target.onnxruntime, target.opset, target.ir_version) == ("1.28.0", 26, 13)
    assert target.pytorch_container == "nvcr.io/nvidia/pytorch:26.08-py3"
    assert target.torch == "2.14.0a0+4fdf77b940.nv26.08"
    assert target.latency_histograms is True
    assert "thread: torch" in target.source


def test_older_names_still_lead_to_their_targets() -> None:
    for name in (LOCAL_CPU, "24.10-cpu", "26.06-cpu", "26.07-cpu", "26.08-cpu"):
        assert find_target(name).name == name
        assert find_target(name).device == "cpu"


def test_a_release_has_only_the_gpus_that_it_runs_on() -> None:
    def gpus(release: str) -> list[int]:
        return [target.sm for target in all_targets().values() if target.triton == release and target.sm]

    assert gpus("24.10") == [75, 80, 86, 89, 90]
    assert gpus("26.08") == [75, 80, 86, 89, 90, 100, 103, 120]


def test_a_higher_minimum_takes_gpus_away() -> None:
    release = TABLE.releases[-1]
    strict = Fact(value="8.9", how="read", source="releases")
    newer = release.model_copy(update={"facts": {**release.facts, "min_compute_capability": strict}})
    assert [gpu.sm for gpu in TABLE.gpus if newer.admits(gpu)] == [89, 90, 100, 103, 120]


@pytest.mark.parametrize(
    ("name", "why", "nearest"),
    [
        ("26.8-cpu", "there is no target '26.8-cpu'", "26.08-cpu"),
        ("26.08-cuda", "the name needs its compute capability", "26.08-cuda-sm90"),
        ("26.08-cuda-sm70", "the sm values of 26.08 are 75, 80", "26.08-cuda-sm75"),
        ("24.10-cuda-sm100", "the sm values of 24.10 are 75, 80, 86, 89, 90", "24.10-cuda-sm90"),
        ("27.01-cpu", "release 27.01 is not in the table, which goes from 24.10 to 26.11", "26.01-cpu"),
        ("local", "there is no target 'local'", "local-cpu"),
        ("???", "there is no target '???'", "26.11-cuda-sm120"),
    ],
)
def test_a_wrong_name_gets_its_reason_and_the_nearest_right_ones(name: str, why: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_target(name)
    assert why in caught.value.found
    assert nearest in caught.value.expected


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["targets", *arguments], prog_name="deployctl", env={"COLUMNS": "120"})


def test_the_command_lists_the_releases() -> None:
    printed = invoke().output
    assert all(release.triton in printed for release in TABLE.releases)
    assert "AOTI: whether" in printed


def test_the_command_explains_one_target_with_its_sources_and_defects() -> None:
    printed = invoke("26.05-cpu").output
    assert re.search(r"torch +2\.12\.0a0\+0291f960b6\.nv26\.04 +thread +published-runs", printed)
    assert "aoti-no-batching: responses of a merged batch" in printed
    assert "published-runs: several public repositories" in printed


def test_the_json_holds_every_target_with_every_fact() -> None:
    everything = json.loads(invoke("--json").output)
    assert [target["name"] for target in everything] == list(all_targets())
    one = json.loads(invoke("26.08-cuda-sm90", "--json").output)[0]
    assert one == next(target for target in everything if target["name"] == "26.08-cuda-sm90")
    assert one["facts"]["onnxruntime"]["how"] == "read"
    assert "compatibility.md" in one["facts"]["onnxruntime"]["source"]
    assert "batcher-use-after-free" in one["bugs"]


def test_a_wrong_name_on_the_command_line_is_wrong_use() -> None:
    assert isinstance(invoke("26.8-cpu").exception, UsageError)
