"""Which device a run works on is decided before any work, and each thing that lacks has its remedy."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.checkpoint.model import CheckpointRequest
from deploy.device import fitted, obstacles, place
from deploy.errors import MissingError, UsageError
from deploy.gpu import GpuStack, LocalGpu, gpu_folders, parse_gpus, visible_gpu
from deploy.package import package, plan_package
from deploy.request import PackageRequest
from deploy.targets import LOCAL_CUDA, find_target

LISTING = """NVIDIA H100 80GB HBM3, 580.159.04, 9.0, 81559 MiB
NVIDIA A100-SXM4-40GB, 580.159.04, 8.0, 40960 MiB
"""
H100 = LocalGpu(name="NVIDIA H100 80GB HBM3", sm=90, driver="580.159.04", memory=81559 * 2**20, cuda="13.0")
NO_PROVIDER = "onnxruntime 1.32.0 has no CUDAExecutionProvider: it is the build for CPU"
NO_TOOLKIT = "the CUDA toolkit was not found"


def request(target: str = LOCAL_CUDA, **changes: object) -> PackageRequest:
    """A request for the GPU, of a checkpoint that is not there: nothing may be read before the device is settled."""
    asked = PackageRequest(
        checkpoint=CheckpointRequest(path=Path("absent.pt")),
        repository=Path("absent"),
        target=find_target(target),
        device="cuda",
        serve_check=False,
    )
    return replace(asked, **changes)  # type: ignore[arg-type]


def look(gpu: LocalGpu = H100, **lacks: str) -> GpuStack:
    return GpuStack(gpu=gpu, **lacks)


def test_a_listing_is_read_and_what_is_no_gpu_is_left_out() -> None:
    gpus = parse_gpus(LISTING)
    assert [(gpu.name, gpu.sm, gpu.driver) for gpu in gpus] == [
        ("NVIDIA H100 80GB HBM3", 90, "580.159.04"),
        ("NVIDIA A100-SXM4-40GB", 80, "580.159.04"),
    ]
    assert gpus[0].memory == 81559 * 2**20
    assert parse_gpus("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n") == ()
    assert parse_gpus("Some Old GPU, 390.1, [N/A], 2048 MiB\n") == ()


@pytest.mark.parametrize(
    ("chosen", "sm"), [({}, 90), ("0", 90), ("1,0", 80), ("", None), ("-1", None), ("7", None), ("GPU-1d2c3b", 90)]
)
def test_the_gpu_is_the_first_that_is_visible(chosen: str | dict[str, str], sm: int | None) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": chosen} if isinstance(chosen, str) else chosen
    gpu = visible_gpu(LISTING, environment)
    assert (gpu.sm if gpu else None) == sm
    assert visible_gpu("", environment) is None


def test_a_server_is_given_the_folders_of_gpu_libraries_and_no_other(tmp_path: Path) -> None:
    for name in ("driver/libcuda.so.1", "blas/libcublasLt.so.13", "other/libcurl.so.4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    path = f"{tmp_path / 'other'}:{tmp_path / 'absent'}::{tmp_path / 'driver'}:{tmp_path / 'blas'}"
    assert gpu_folders({"LD_LIBRARY_PATH": path}) == (str(tmp_path / "driver"), str(tmp_path / "blas"))
    assert gpu_folders({}) == ()


def test_a_gpu_is_told_in_one_line() -> None:
    assert str(H100) == "NVIDIA H100 80GB HBM3 (compute capability 9.0, driver 580.159.04, CUDA 13.0)"


def test_on_cpu_nothing_is_asked_and_nothing_changes() -> None:
    asked = request("local-cpu", device="cpu")
    assert place(asked, lambda: pytest.fail("nobody asked for a GPU")) is asked
    for_release = request("26.08-cuda-sm90", device="cpu")
    assert place(for_release, lambda: pytest.fail("proven on CPU")) is for_release


def test_the_local_target_gets_the_gpu_that_is_here() -> None:
    placed = place(request(), look)
    assert (placed.target.name, placed.target.sm, placed.target.device) == (LOCAL_CUDA, 90, "cuda")
    assert placed.gpu == look()
    assert find_target(LOCAL_CUDA).sm is None


def test_a_releases_target_wants_its_own_compute_capability() -> None:
    assert place(request("26.08-cuda-sm90"), look).target == find_target("26.08-cuda-sm90")
    with pytest.raises(MissingError, match=r"sm80 is for compute capability 8\.0, and here is NVIDIA H100 80GB HBM3"):
        place(request("26.08-cuda-sm80"), look)


@pytest.mark.parametrize(
    ("target", "device", "words"),
    [
        (LOCAL_CUDA, "cpu", r"this machine's GPU, and --device is cpu(.|\n)*--device cuda"),
        ("local-cpu", "cuda", r"--device is cuda, and target local-cpu runs on CPU(.|\n)*local-cuda"),
        ("26.08-cpu", "cuda", r"--device is cuda, and target 26\.08-cpu runs on CPU"),
    ],
)
def test_a_target_on_another_device_is_wrong_use(target: str, device: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        place(request(target, device=device), look)


def test_where_all_is_there_both_formats_are_made() -> None:
    assert obstacles(place(request(), look)) == {}


def test_onnx_is_lost_where_its_runtime_has_no_cuda_and_nothing_is_proven_on_cpu_instead() -> None:
    placed = place(request(), lambda: look(onnx=NO_PROVIDER))
    (lost,) = obstacles(placed).items()
    assert (lost[0], lost[1].found) == ("onnx", NO_PROVIDER)
    assert isinstance(lost[1], MissingError)
    assert "pip install onnxruntime-gpu" in lost[1].fix


def test_what_compiles_kernels_is_missed_before_any_work() -> None:
    placed = place(request(), lambda: look(aoti=NO_TOOLKIT))
    (lost,) = obstacles(placed).items()
    assert (lost[0], lost[1].found, type(lost[1])) == ("aoti", NO_TOOLKIT, MissingError)
    assert "CUDA_HOME" in lost[1].fix
    assert obstacles(replace(placed, formats=("onnx",))) == {}


def test_an_archive_for_a_release_wants_that_releases_torch_on_a_gpu_too() -> None:
    (lost,) = obstacles(place(request("26.08-cuda-sm90"), look)).items()
    assert lost[0] == "aoti"
    assert "runs torch 2.14.0a0+4fdf77b940.nv26.08, and the one here is" in lost[1].found


@pytest.mark.skipif(visible_gpu() is not None, reason="there is a GPU here")
@pytest.mark.parametrize("entry", [package, plan_package])
def test_without_a_gpu_it_stops_before_any_work(entry: object) -> None:
    assert callable(entry)
    with pytest.raises(MissingError, match=r"torch .* (is built without CUDA|sees no usable GPU)"):
        entry(request())


def test_fitting_leaves_the_rest_of_a_target_alone() -> None:
    target = find_target(LOCAL_CUDA).with_isa("native")
    assert fitted(target, H100) == target.model_copy(update={"sm": 90})
