"""What an ONNX Runtime session on a GPU is told, and that one which lacks a provider is refused: without a GPU."""

import pytest

from deploy.convert.model import Precision
from deploy.convert.ort_session import options_in
from deploy.convert.providers import CUDA_PROVIDER, TENSORRT_PROVIDER, providers, require_provider
from deploy.convert.tactics import alternatives, tensorrt
from deploy.errors import UnfinishedError
from deploy.spec import BATCH, Dim, Spec, TensorSpec

CUDA = (CUDA_PROVIDER, {"device_id": "0", "use_tf32": "0"})
CPU = "CPUExecutionProvider"


class Session:
    """As much of a session as says on what it runs."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)

    def get_providers(self) -> list[str]:
        return self.names


def spec() -> Spec:
    """Token ids of a dynamic length, and a table of a fixed size."""
    tokens = TensorSpec(name="ids", dtype="int64", shape=(BATCH, "length"))
    table = TensorSpec(name="table", dtype="float32", shape=(4, 3))
    dims = (Dim(name=BATCH, minimum=1, maximum=8), Dim(name="length", minimum=2, maximum=128))
    scores = TensorSpec(name="scores", dtype="float32", shape=(BATCH, 3))
    return Spec(inputs=(tokens, table), outputs=(scores,), dims=dims)


def test_a_session_on_the_gpu_is_told_to_keep_float32() -> None:
    assert providers("cpu", {"cuda.prefer_nhwc": "1"}) == [CPU]
    assert providers("cuda") == [CUDA, CPU]


def test_what_a_tactic_tells_cuda_reaches_its_provider() -> None:
    (tactic,) = (one for one in alternatives("onnx", "normal", "cuda") if one.name == "channels last")
    assert tactic.at_run_time
    told = (CUDA_PROVIDER, {**CUDA[1], "prefer_nhwc": "1"})
    assert providers("cuda", options_in({"opset": "20", "cuda": "13.0", **tactic.options})) == [told, CPU]


@pytest.mark.parametrize(
    ("precision", "switch"),
    [("fp32", {}), ("fp16", {"trt_fp16_enable": "1"}), ("bf16", {"trt_bf16_enable": "1"})],
)
def test_tensorrt_comes_first_and_knows_the_bounds_of_every_dynamic_input(
    precision: Precision, switch: dict[str, str]
) -> None:
    tactic = tensorrt(spec(), precision)
    assert tactic.at_run_time
    (name, given), *others = providers("cuda", tactic.options)
    assert (name, others) == (TENSORRT_PROVIDER, [CUDA, CPU])
    shapes = {
        "trt_profile_min_shapes": "INPUT__0:1x2",
        "trt_profile_opt_shapes": "INPUT__0:8x128",
        "trt_profile_max_shapes": "INPUT__0:8x128",
    }
    assert given == {"device_id": "0", **shapes, **switch}


def test_tensorrt_needs_no_bounds_for_a_static_program_and_takes_the_space_it_is_given() -> None:
    scores = spec().outputs[0].model_copy(update={"shape": (1, 3)})
    static = Spec(inputs=spec().inputs[1:], outputs=(scores,))
    options = {**tensorrt(static, "fp32").options, "tensorrt.max_workspace_size_bytes": "1024"}
    assert providers("cuda", options)[0][1] == {"device_id": "0", "trt_max_workspace_size": "1024"}


def test_a_session_that_lacks_a_provider_is_refused() -> None:
    require_provider(Session(CPU), "cpu")
    require_provider(Session(CUDA_PROVIDER, CPU), "cuda")
    with pytest.raises(UnfinishedError, match=r"opened its session on CPUExecutionProvider: its CUDAExecutionProvider"):
        require_provider(Session(CPU), "cuda")
    asked = tensorrt(spec(), "fp32").options
    require_provider(Session(TENSORRT_PROVIDER, CUDA_PROVIDER, CPU), "cuda", asked)
    with pytest.raises(UnfinishedError, match="its TensorrtExecutionProvider did not load"):
        require_provider(Session(CUDA_PROVIDER, CPU), "cuda", asked)
