"""The arithmetic: by hand for a model everybody knows, on the GPUs people have."""

from pathlib import Path

import pytest

from deploy.errors import UsageError
from deploy.llm.gpus import PARTS, find_part
from deploy.llm.model import Adapter, Geometry, LlmCheckpoint, Wishes
from deploy.llm.sizing import lora_rank, size_model
from deploy.llm.support import check_support, vllm_of, vllm_releases
from deploy.releases import read_releases
from deploy.serve.vllm import RELEASE
from deploy.targets import find_target

H100 = find_target("26.08-cuda-sm90")
A100 = find_target("26.08-cuda-sm80")
# Llama 3.1: the sizes of its config.json, and the parameters that its card counts.
EIGHT = Geometry(
    layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, vocabulary=128256, positions=131072
)
SEVENTY = EIGHT.model_copy(update={"layers": 80, "hidden": 8192, "intermediate": 28672, "heads": 64})


def llama(geometry: Geometry, parameters: int, **changes: object) -> LlmCheckpoint:
    """A checkpoint of that size in bfloat16; nothing of it lies on disk."""
    made = LlmCheckpoint(
        path=Path("llama"),
        digest="0" * 64,
        name="llama",
        architecture="LlamaForCausalLM",
        dtype="bfloat16",
        parameters=parameters,
        stored_bytes=2 * parameters,
        geometry=geometry,
        quantization=None,
        chat_template=True,
        files=(),
    )
    return made.model_copy(update=changes)


LLAMA_8B, LLAMA_70B = llama(EIGHT, 8_030_261_248), llama(SEVENTY, 70_553_706_496)


def test_the_terms_of_a_known_model_are_those_computed_by_hand() -> None:
    found = size_model(LLAMA_8B, H100, Wishes(gpu="H100-80GB", sequences=2, context=8192), dtype="bfloat16")
    terms = {term.name: term.bytes for term in found.terms}
    assert found.tensor_parallel == 1
    assert found.budget == 0.9 * 80e9
    assert terms["weights"] == 2 * 8_030_261_248
    # 2 (K and V) x 32 layers x 8 heads x 128 x 2 bytes: the 128 KiB per token that everybody quotes.
    assert found.kv_bytes_per_token == 131_072
    assert found.kv_cache == pytest.approx(found.budget - sum(terms.values()))
    assert found.sequences == pytest.approx(found.kv_cache / (131_072 * 8192))
    assert any("H100-80GB" in line and "90% of 80.00 GB = 72.00 GB" in line for line in found.lines())


def test_a_model_is_split_as_vllm_can_split_its_layers_alone() -> None:
    """vLLM asserts that what lies between an MLP's layers divides too: 28,674 is even, and not divisible by four."""
    odd = llama(SEVENTY.model_copy(update={"intermediate": 28_674}), 70_553_706_496)
    with pytest.raises(UsageError, match="the model does not fit") as refused:
        size_model(odd, H100, Wishes(gpu="H100-80GB", sequences=4, context=8192), dtype="bfloat16")
    assert "split over 1, 2)" in refused.value.expected


def test_a_larger_model_is_split_over_more_gpus() -> None:
    found = size_model(LLAMA_70B, H100, Wishes(gpu="H100-80GB", sequences=4, context=8192), dtype="bfloat16")
    assert found.tensor_parallel == 4
    assert {term.name: term.bytes for term in found.terms}["weights"] == 2 * 70_553_706_496 / 4
    assert found.kv_bytes_per_token == 2 * 80 * 2 * 128 * 2


def test_more_gpus_than_heads_repeat_the_heads() -> None:
    one_head = llama(EIGHT.model_copy(update={"kv_heads": 1}), 8_030_261_248)
    single = size_model(one_head, A100, Wishes(gpu="A100-80GB", sequences=1, context=4096), dtype="bfloat16")
    wide = llama(SEVENTY.model_copy(update={"kv_heads": 1}), 70_553_706_496)
    split = size_model(wide, A100, Wishes(gpu="A100-80GB", sequences=1, context=4096), dtype="bfloat16")
    assert single.tensor_parallel == 1
    assert split.tensor_parallel > 1
    assert split.kv_bytes_per_token == 2 * 80 * 1 * 128 * 2


def test_only_devices_over_which_vllm_splits_the_heads_are_tried() -> None:
    """Phi-3 medium's 40 heads, 10 of keys and values: four devices, which divide the one, do not divide the other."""
    phi = llama(EIGHT.model_copy(update={"hidden": 5120, "layers": 40, "heads": 40, "kv_heads": 10}), 70_000_000_000)
    with pytest.raises(UsageError, match=r"40 heads, 10 of keys and values, split over 1, 2\)"):
        size_model(phi, H100, Wishes(gpu="H100-80GB", sequences=4, context=8192), dtype="bfloat16")
    latent = phi.model_copy(update={"geometry": phi.geometry.model_copy(update={"latent": 576})})
    found = size_model(latent, H100, Wishes(gpu="H100-80GB", sequences=4, context=8192), dtype="bfloat16")
    assert found.tensor_parallel == 4


def test_what_does_not_fit_shows_its_arithmetic_and_the_way_out() -> None:
    with pytest.raises(UsageError) as caught:
        size_model(LLAMA_70B, H100, Wishes(gpu="H100-80GB", gpus=2, sequences=4), dtype="bfloat16")
    assert "weights: 70.55 GB (70,553,706,496 x 2 B / 2)" in caught.value.found
    assert "fewer --sequences" in caught.value.fix
    with pytest.raises(UsageError) as caught:
        size_model(LLAMA_8B, H100, Wishes(gpu="H100-80GB", gpus=1, sequences=64), dtype="bfloat16")
    shorter = int(caught.value.fix.split("--context ")[1].split()[0])
    fits = size_model(LLAMA_8B, H100, Wishes(gpu="H100-80GB", gpus=1, sequences=64, context=shorter), dtype="bfloat16")
    assert fits.tensor_parallel == 1


def test_more_precision_takes_more_of_everything() -> None:
    wishes = Wishes(gpu="H100-80GB", sequences=1, context=4096)
    half, full = (size_model(LLAMA_8B, H100, wishes, dtype=dtype) for dtype in ("bfloat16", "float32"))
    assert full.terms[0].bytes == 2 * half.terms[0].bytes
    assert full.kv_bytes_per_token == 2 * half.kv_bytes_per_token


def test_quantized_weights_count_as_they_are_stored() -> None:
    small = llama(EIGHT, 8_030_261_248, quantization="gptq", stored_bytes=5_700_000_000)
    found = size_model(small, A100, Wishes(gpu="A30", sequences=1, context=4096), dtype="bfloat16")
    assert found.terms[0].bytes == 5_700_000_000


def test_adapters_take_room_for_the_rank_that_vllm_allocates() -> None:
    adapters = tuple(
        Adapter(name=name, path=Path(name), rank=rank, size=0, parameters=1_000_000 * rank, files=())
        for name, rank in (("a", 12), ("b", 4))
    )
    found = llama(EIGHT, 8_030_261_248, adapters=adapters)
    assert lora_rank(found) == 16
    sized = size_model(found, H100, Wishes(gpu="H100-80GB", sequences=1, context=4096), dtype="bfloat16")
    lora = {term.name: term.bytes for term in sized.terms}["LoRA adapters"]
    assert lora == 2 * (1_000_000 * 16 * 2)


@pytest.mark.parametrize("context", [8, 131073])
def test_a_context_that_the_model_has_not_is_refused(context: int) -> None:
    with pytest.raises(UsageError, match=f"--context is {context}"):
        size_model(LLAMA_8B, H100, Wishes(context=context), dtype="bfloat16")


def test_parts_are_those_of_the_targets() -> None:
    assert {part.sm for part in PARTS} == {gpu.sm for gpu in read_releases().gpus}
    assert find_part(A100, None).name == "A30"
    with pytest.raises(UsageError, match=r"H100-80GB has compute capability 9.0"):
        find_part(A100, "h100-80gb")
    with pytest.raises(UsageError, match="there is no part 'A100'"):
        find_part(A100, "A100")


def test_an_architecture_is_held_against_the_release() -> None:
    check_support(LLAMA_8B, H100, dtype="bfloat16")
    with pytest.raises(
        UsageError, match=r"vLLM 0.27.1 of 26.08-cuda-sm90 generates no text with the architecture Llam"
    ):
        check_support(llama(EIGHT, 1, architecture="LlamaForSomething"), H100, dtype="bfloat16")


def test_a_newer_architecture_names_the_targets_that_serve_it() -> None:
    old, new = vllm_releases()["0.13.0"], vllm_releases()["0.27.1"]
    name = sorted(new.architectures - old.architectures)[0]
    with pytest.raises(UsageError) as caught:
        check_support(llama(EIGHT, 1, architecture=name), find_target("26.01-cuda-sm90"), dtype="bfloat16")
    assert "26.08-cuda-sm90" in caught.value.fix or "more" in caught.value.fix
    assert "26.01" not in caught.value.fix


def test_bfloat16_is_refused_where_the_gpu_has_none() -> None:
    turing = find_target("26.08-cuda-sm75")
    with pytest.raises(UsageError, match="has no bfloat16") as caught:
        check_support(LLAMA_8B, turing, dtype="bfloat16")
    assert caught.value.fix == "--dtype float16"
    check_support(LLAMA_8B, turing, dtype="float16")


def test_a_release_whose_vllm_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError, match=r"which models 26.11-cuda-sm90 serves is not known"):
        vllm_of(find_target("26.11-cuda-sm90"))


def test_one_number_names_the_local_vllm() -> None:
    pinned = (Path(__file__).parents[2] / "requirements" / "vllm.txt").read_text()
    assert f"\nvllm-cpu=={RELEASE}\n" in pinned
    assert RELEASE in vllm_releases()
