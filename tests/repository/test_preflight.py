"""A version is held against any target from its files alone; each thing that does not fit is named, with who fits."""

import json
import zipfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import UsageError
from deploy.repository.config import build_config
from deploy.repository.onnx_header import OnnxHeader
from deploy.repository.preflight import Subject, preflight, read_archive_metadata, read_most_threads
from deploy.repository.protobuf import parse_config, schema
from deploy.targets import Target, find_target
from tests.repository.samples import Sample

NVIDIA_TORCH = "2.14.0a0+4fdf77b940.nv26.8.63802676"
CPU_ARCHIVE = {
    "AOTI_DEVICE_KEY": "cpu",
    "AOTI_PLATFORM": "linux",
    "AOTI_MACHINE": "x86_64",
    "AOTI_CPU_ISA": "AVX2",
    "AOTI_COMPUTE_CAPABILITY": "",
}


def onnx_subject(target: str = "26.08-cpu", *, opset: int = 20, ir_version: int = 10) -> Subject:
    plan = replace(Sample(classes=None).plan(), target=find_target(target))
    header = OnnxHeader(ir_version=ir_version, opsets={"": opset})
    config = parse_config(build_config(plan))
    return Subject(format="onnx", config=config, torch="2.13.0", cpu_isa="avx2", archive={}, header=header)


def aoti_subject(target: str = "26.08-cpu", *, torch: str = NVIDIA_TORCH, **facts: str) -> Subject:
    plan = replace(Sample(classes=None, format="aoti").plan(), target=find_target(target))
    config = parse_config(build_config(plan))
    archive = {**CPU_ARCHIVE, **{f"AOTI_{name.upper()}": value for name, value in facts.items()}}
    return Subject(format="aoti", config=config, torch=torch, cpu_isa="avx2", archive=archive, header=None)


def found(subject: Subject, target: str | Target) -> str:
    return "; ".join(preflight(subject, find_target(target) if isinstance(target, str) else target))


@pytest.mark.parametrize("target", ["26.08-cpu", "26.07-cpu", "26.11-cpu", "26.03-cpu"])
def test_a_plain_onnx_version_fits_every_release_with_histograms(target: str) -> None:
    assert found(onnx_subject(), target) == ""


def test_a_gpu_version_fits_other_gpus_and_no_cpu() -> None:
    subject = onnx_subject("26.08-cuda-sm90")
    assert found(subject, "26.08-cuda-sm90") == found(subject, "26.11-cuda-sm120") == ""
    assert "its instances are KIND_GPU, and 26.08-cpu has no GPU" in found(subject, "26.08-cpu")
    assert "KIND_CPU, so that 26.08-cuda-sm90 would leave the GPU idle" in found(onnx_subject(), "26.08-cuda-sm90")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"opset": 24}, "the model has opset 24, and the ONNX Runtime of 26.01-cpu loads up to 23"),
        ({"ir_version": 12}, "the model has IR version 12, and the ONNX Runtime of 26.01-cpu loads up to 11"),
    ],
)
def test_a_ceiling_is_named_with_the_targets_that_are_higher(changes: dict[str, Any], words: str) -> None:
    reason = found(onnx_subject(**changes), "26.01-cpu")
    assert words in reason
    assert "targets that can run it: 26.02-cpu, 26.03-cpu" in reason


def test_nobody_loads_an_opset_of_tomorrow() -> None:
    assert "targets that can run it: none that is known" in found(onnx_subject(opset=99), "26.08-cpu")


def test_an_archive_fits_the_release_whose_torch_compiled_it_and_no_other() -> None:
    assert found(aoti_subject(), "26.08-cpu") == ""
    reason = found(aoti_subject(), "26.07-cpu")
    assert f"compiled by torch {NVIDIA_TORCH}, and 26.07-cpu runs torch 2.13.0a0+9186a08b2c.nv26.07" in reason
    assert reason.endswith("targets that can run it: 26.08-cpu")
    assert "which torch 26.09-cpu runs is not known" in found(aoti_subject(), "26.09-cpu")
    assert "24.10-cpu loads none" in found(aoti_subject(), "24.10-cpu")


def test_this_machine_runs_what_its_own_torch_compiled() -> None:
    here = version("torch")
    assert found(aoti_subject("local-cpu", torch=here), "local-cpu") == ""
    reason = found(aoti_subject("local-cpu", torch="2.1.0"), "local-cpu")
    assert f"compiled by torch 2.1.0, and local-cpu runs torch {here}" in reason


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"device_key": "cuda"}, "the archive is compiled for cuda, and 26.08-cpu has cpu"),
        ({"machine": "aarch64"}, "the archive is compiled for aarch64, and 26.08-cpu is x86_64"),
        ({"platform": "darwin"}, "the archive is compiled for darwin, and 26.08-cpu is linux"),
        ({"cpu_isa": "AVX512"}, "its machine code is for AVX512, and 26.08-cpu is only sure to have AVX2"),
    ],
)
def test_machine_code_for_another_machine_is_named(facts: dict[str, str], words: str) -> None:
    assert words in found(aoti_subject(**facts), "26.08-cpu")


def test_code_for_the_building_machine_alone_fits_only_a_target_that_says_so() -> None:
    native = replace(aoti_subject(), cpu_isa="native")
    assert "the building machine's own CPU" in found(native, "26.08-cpu")
    assert found(native, find_target("26.08-cpu").with_isa("native")) == ""


@pytest.mark.parametrize("capability", ["90", "9.0", "sm_90"])
def test_kernels_fit_their_own_compute_capability(capability: str) -> None:
    subject = aoti_subject("26.08-cuda-sm90", device_key="cuda", compute_capability=capability)
    assert found(subject, "26.08-cuda-sm90") == ""
    assert f"kernels are for compute capability {capability}, and 26.08-cuda-sm80 has 80" in found(
        subject, "26.08-cuda-sm80"
    )


def changed(subject: Subject, change: Any) -> Subject:
    config = schema().ModelConfig()
    config.CopyFrom(subject.config)
    change(config)
    return replace(subject, config=config)


def test_batching_of_archives_is_refused_where_it_is_wrong() -> None:
    torch = "2.12.0a0+0291f960b6.nv26.04"
    assert found(aoti_subject("26.05-cpu", torch=torch), "26.05-cpu") == ""
    batching = aoti_subject("26.08-cpu", torch=torch)
    assert "max_batch_size is 8, and 26.05-cpu merges archives' requests wrongly" in found(batching, "26.05-cpu")


def test_names_by_place_in_the_call_are_refused_where_only_ordinals_are_known() -> None:
    def rename(config: Any) -> None:
        config.input[0].name = "ARGS[0]"

    torch = "2.12.0a0+0291f960b6.nv26.04"
    subject = changed(aoti_subject("26.04-cpu", torch=torch), rename)
    assert "ARGS[0] goes by its place in the call, and 26.04-cpu knows ordinals only" in found(subject, "26.04-cpu")
    assert found(subject, "26.05-cpu") == ""


def test_bfloat16_is_refused_where_the_backend_exchanges_none() -> None:
    def narrow(config: Any) -> None:
        config.output[0].data_type = schema().TYPE_BF16

    subject = changed(onnx_subject(), narrow)
    assert found(subject, "26.03-cpu") == ""
    assert "OUTPUT__0 is BF16, which 26.02-cpu cannot exchange" in found(subject, "26.02-cpu")
    assert "OUTPUT__0 is BF16, which 26.08-cpu cannot exchange" in found(changed(aoti_subject(), narrow), "26.08-cpu")


def test_buckets_are_refused_by_a_release_without_histograms() -> None:
    assert "its config has model_metrics, which 24.10-cpu has not" in found(onnx_subject(), "24.10-cpu")


def test_an_archive_tells_of_itself_without_being_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/aotinductor/model/abc.wrapper_metadata.json", json.dumps(CPU_ARCHIVE))
        archive.writestr("data/aotinductor/model/abc.so", b"never loaded")
    assert read_archive_metadata(path) == CPU_ARCHIVE


OLD_SUM = """
    float tmp_acc0_arr[4];
    #pragma omp parallel
    {
        int tid = omp_get_thread_num();
        tmp_acc0_arr[tid] = tmp_acc0_local;
    }
"""


@pytest.mark.parametrize(
    ("source", "most"),
    [
        (OLD_SUM, 4),
        (OLD_SUM + OLD_SUM.replace("[4]", "[2]"), 2),
        # Torch 2.11 starts no more than fit; ours have as much room as there are threads.
        (OLD_SUM.replace("parallel", "parallel num_threads(4)"), None),
        (OLD_SUM.replace("[4]", "[max_threads]"), None),
        # Room for the elements of a vector, which no thread shares.
        ("float tmp_acc0_arr[8]; tmp_acc0_arr[x0_tail] = 1;", None),
    ],
)
def test_how_many_threads_code_has_room_for_is_in_its_sources(tmp_path: Path, source: str, most: int | None) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/aotinductor/model/model.kernel.cpp", source)
    assert read_most_threads(path) == most


def test_code_without_room_for_the_servers_threads_is_refused() -> None:
    here = version("torch")
    local = replace(aoti_subject("local-cpu", torch=here), most_threads=2)

    def with_threads(threads: str) -> Subject:
        return changed(local, lambda config: config.parameters["INTRA_OP_THREAD_COUNT"].MergeFrom(text(threads)))

    def text(value: str) -> Any:
        return schema().ModelParameter(string_value=value)

    assert found(with_threads("2"), "local-cpu") == ""
    reason = found(with_threads("16"), "local-cpu")
    assert "crashes with more than 2 threads, and local-cpu starts 16, as its config says" in reason
    assert "package the checkpoint again" in reason
    # This release reads no number of threads.
    released = replace(aoti_subject(), most_threads=64)
    assert "26.08-cpu starts as many as its processor has cores" in found(released, "26.08-cpu")
    assert found(replace(released, most_threads=None), "26.08-cpu") == ""


@pytest.mark.parametrize("entry", [None, "data/other.json"])
def test_what_is_no_archive_is_refused(tmp_path: Path, entry: str | None) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(b"weights")
    if entry is not None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(entry, "{}")
    with pytest.raises(UsageError, match=r"is no AOTInductor archive|holds no metadata"):
        read_archive_metadata(path)
