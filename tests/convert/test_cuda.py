"""What of the GPU's part can be decided without one: settings of the compiler, and whose an archive is."""

import subprocess
from pathlib import Path

import pytest

from deploy.convert.aoti import compiler_settings, known_settings
from deploy.convert.archive import check_device, read_metadata
from deploy.convert.compiler import require_compiler
from deploy.convert.cuda import device_details, links_with_cuda, toolkit_environment
from deploy.convert.tactics import alternatives
from deploy.errors import UsageError

GPU_ARCHIVE = {"AOTI_DEVICE_KEY": "cuda", "AOTI_COMPUTE_CAPABILITY": "90"}


def test_details_say_nothing_of_a_cpu() -> None:
    assert device_details("cpu") == {}


def test_a_gpus_kernels_are_for_that_gpu_alone_and_compiled_side_by_side() -> None:
    on_cpu, on_gpu = compiler_settings("cpu"), compiler_settings("cuda")
    assert on_gpu["aot_inductor.emit_multi_arch_kernel"] is False
    assert "compile_threads" not in on_gpu
    assert on_gpu.keys() - on_cpu.keys() == {"aot_inductor.emit_multi_arch_kernel"}


def test_every_tactic_on_a_gpu_is_a_setting_that_the_compiler_has() -> None:
    from torch._inductor import config

    asked = {name for tactic in alternatives("aoti", "max", "cuda") for name in tactic.options}
    assert asked and asked <= config.get_config_copy().keys()
    assert all(one.options and not one.at_run_time for one in alternatives("aoti", "max", "cuda"))


def test_a_setting_that_this_torch_does_not_know_is_left_out() -> None:
    settings = compiler_settings("cuda")
    assert known_settings(settings, settings.keys()) == settings
    older = settings.keys() - {"aot_inductor.emit_multi_arch_kernel"}
    assert known_settings(settings, older).keys() == older


def test_without_a_place_beside_the_code_the_weights_stay_in_it() -> None:
    settings = compiler_settings("cuda")
    known = settings.keys() - {"aot_inductor.package_constants_on_disk_format"}
    assert "aot_inductor.package_constants_in_so" not in known_settings(settings, known)


def test_all_settings_are_known_to_the_installed_torch() -> None:
    from torch._inductor import config

    known = config.get_config_copy()
    assert known_settings(compiler_settings("cuda"), known) == compiler_settings("cuda")


def test_an_archive_is_let_through_on_its_own_gpu() -> None:
    check_device(Path("model.pt2"), GPU_ARCHIVE, device="cuda", sm=90)
    check_device(Path("model.pt2"), {"AOTI_DEVICE_KEY": "cpu"}, device="cpu", sm=None)
    check_device(Path("model.pt2"), {}, device="cuda", sm=90)


def test_an_archive_for_another_gpu_is_refused_with_both_named() -> None:
    words = r"kernels for compute capability 9\.0, and the GPU here has 8\.0(.|\n)*expected: an archive for 8\.0"
    with pytest.raises(UsageError, match=words):
        check_device(Path("model.pt2"), GPU_ARCHIVE, device="cuda", sm=80)


def test_an_archive_for_another_device_is_refused_with_both_named() -> None:
    with pytest.raises(UsageError, match=r"compiled for cuda, and it is to run on cpu(.|\n)*--device cpu"):
        check_device(Path("model.pt2"), GPU_ARCHIVE, device="cpu", sm=None)
    with pytest.raises(UsageError, match="compiled for cpu, and it is to run on cuda"):
        check_device(Path("model.pt2"), {"AOTI_DEVICE_KEY": "cpu"}, device="cuda", sm=90)


def test_what_is_no_archive_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"weights")
    with pytest.raises(UsageError, match="is no AOTInductor archive"):
        read_metadata(tmp_path / "model.pt2")


def test_the_toolkits_stub_of_the_driver_is_linked_with_where_it_lies(tmp_path: Path) -> None:
    stubs = tmp_path / "targets" / "x86_64-linux" / "lib" / "stubs"
    stubs.mkdir(parents=True)
    assert str(stubs) not in toolkit_environment(str(tmp_path), {})["LIBRARY_PATH"]
    (stubs / "libcuda.so").touch()
    found = toolkit_environment(str(tmp_path), {"LIBRARY_PATH": "/opt/lib"})
    assert found["CUDA_HOME"] == str(tmp_path)
    assert found["LIBRARY_PATH"].split(":")[:2] == ["/opt/lib", str(stubs)]


def test_a_toolkit_without_its_headers_is_told_in_the_compilers_words(tmp_path: Path) -> None:
    reason = links_with_cuda(require_compiler(), {"CUDA_HOME": str(tmp_path), "LIBRARY_PATH": ""})
    assert f"cannot build for CUDA with the toolkit in {tmp_path}" in reason
    assert "cuda.h" in reason


def test_a_toolkit_that_has_all_passes(tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda.h").write_text('extern "C" int cuInit(unsigned);\n')
    (tmp_path / "include" / "cuda_runtime_api.h").touch()
    variables = {"CUDA_HOME": str(tmp_path), "LIBRARY_PATH": str(tmp_path)}
    assert "cannot find -lcuda" in links_with_cuda(require_compiler(), variables)
    stub = [require_compiler(), "-x", "c++", "-shared", "-fPIC", "-", "-o", str(tmp_path / "libcuda.so")]
    subprocess.run(stub, input='extern "C" int cuInit(unsigned) { return 0; }', text=True, check=True)
    assert links_with_cuda(require_compiler(), variables) == ""
