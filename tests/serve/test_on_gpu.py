"""A version for a GPU is served on the one that is here, and on the CPU where there is none; the core sees a CPU."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from deploy.convert.model import Format
from deploy.convert.providers import CUDA_PROVIDER, TENSORRT_PROVIDER, providers
from deploy.gpu import LocalGpu
from deploy.repository.config import build_config
from deploy.repository.layout import Version
from deploy.repository.protobuf import parse_config, schema
from deploy.serve import local
from deploy.serve.local import adapt, computes_on_gpu
from deploy.serve.parameters import DEVICE_PARAMETER
from deploy.targets import LOCAL_CUDA, find_target
from tests.repository.samples import Sample, put

H100 = LocalGpu(name="NVIDIA H100", sm=90, driver="580", memory=80 * 2**30)


def adapted(
    folder: Path, format_: Format, target: str, gpu: LocalGpu | None, options: Mapping[str, str] = MappingProxyType({})
) -> object:
    version: Version = put(folder / "models", Sample(format=format_)).version
    plan = replace(Sample(format=format_).plan(), target=find_target(target), options=options)
    return adapt(version, parse_config(build_config(plan)), gpu)


def device(config: object) -> str | None:
    parameters = config.parameters  # type: ignore[attr-defined]
    return parameters[DEVICE_PARAMETER].string_value if DEVICE_PARAMETER in parameters else None


@pytest.mark.parametrize(("gpu", "wanted"), [(H100, "cuda"), (None, None)])
def test_an_archive_for_a_gpu_is_put_on_the_one_that_is_here(
    tmp_path: Path, gpu: LocalGpu | None, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = adapted(tmp_path, "aoti", LOCAL_CUDA, gpu)
    assert device(config) == wanted
    (group,) = config.instance_group  # type: ignore[attr-defined]
    assert group.kind == schema().ModelInstanceGroup.KIND_CPU
    assert list(group.gpus) == []


def test_a_version_for_the_cpu_stays_there_beside_a_gpu(tmp_path: Path) -> None:
    assert device(adapted(tmp_path, "aoti", "local-cpu", H100)) is None


def test_what_an_accelerator_is_told_reaches_the_session_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "computes_on_gpu", lambda backend, gpu: gpu is not None)
    options = {"cuda.prefer_nhwc": "1", "tensorrt.precision_mode": "FP16"}
    on_gpu = adapted(tmp_path, "onnx", "26.08-cuda-sm90", H100, options)
    parameters = {name: one.string_value for name, one in on_gpu.parameters.items()}  # type: ignore[attr-defined]
    assert options.items() | {("cuda.use_tf32", "0")} <= parameters.items()
    tensorrt, cuda, _ = providers("cuda", parameters)
    assert tensorrt == (TENSORRT_PROVIDER, {"device_id": "0", "trt_fp16_enable": "1"})
    assert cuda == (CUDA_PROVIDER, {"device_id": "0", "use_tf32": "0", "prefer_nhwc": "1"})
    on_cpu = adapted(tmp_path / "cpu", "onnx", "26.08-cuda-sm90", None, options)
    assert not options.keys() & set(on_cpu.parameters)  # type: ignore[attr-defined]


def test_a_graph_is_served_on_the_gpu_only_by_a_runtime_that_has_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "onnxruntime"
    (package / "capi").mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "1.31.1"\n')
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    assert not computes_on_gpu("onnxruntime", H100)
    (package / "capi" / "libonnxruntime_providers_cuda.so").touch()
    assert computes_on_gpu("onnxruntime", H100)
    assert not computes_on_gpu("onnxruntime", None)
    assert not computes_on_gpu("vllm", H100)
