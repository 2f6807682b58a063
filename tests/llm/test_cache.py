"""What a sequence takes of vLLM's KV cache: by hand for the configs of models everybody knows."""

from pathlib import Path
from typing import Any

import pytest

from deploy.errors import UsageError
from deploy.llm.cache import cache_use, read_attention
from deploy.llm.model import Geometry, LlmCheckpoint, Wishes
from deploy.llm.read import read_llm
from deploy.llm.sizing import size_model
from deploy.targets import find_target
from tests.llm.checkpoints import Llama, edit_json

HERE = Path("model")
IN_FLIGHT = 16384
GEMMA_2_9B = {"model_type": "gemma2", "sliding_window": 4096, "num_hidden_layers": 42}
GEMMA_3_1B = {"model_type": "gemma3_text", "sliding_window": 512, "sliding_window_pattern": 6, "num_hidden_layers": 26}
GPT_OSS_20B = {
    "model_type": "gpt_oss",
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "num_hidden_layers": 24,
}
UNEVEN = ["full_attention"] * 13 + ["sliding_attention"] * 12
MISTRAL_7B = {"model_type": "mistral", "sliding_window": 4096, "num_hidden_layers": 32}
QWEN_2_7B = {
    "model_type": "qwen2",
    "sliding_window": 131072,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "num_hidden_layers": 28,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "num_hidden_layers": 61,
}
MINICPM_3 = {
    "model_type": "minicpm3",
    "kv_lora_rank": 256,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "num_hidden_layers": 62,
}


def geometry(config: dict[str, Any], *, heads: int, head_dim: int) -> Geometry:
    """The geometry of a config with so many heads of keys and values."""
    layers = config["num_hidden_layers"]
    sizes = {"head_dim": head_dim, **read_attention(HERE, config, layers=layers)}
    return Geometry(
        layers=layers,
        hidden=4096,
        intermediate=8192,
        heads=64,
        kv_heads=heads,
        vocabulary=32000,
        positions=1 << 20,
        **sizes,
    )


@pytest.mark.parametrize(
    ("config", "heads", "head_dim", "context", "by_hand"),
    [
        # One latent of 512 + 64 in bfloat16 and 61 layers: the 70 kB per token of DeepSeek's report.
        (DEEPSEEK_V3, 128, 56, 4096, 4096 * 61 * 576 * 2),
        # And an index of 128 bytes with one float32 of scale.
        ({**DEEPSEEK_V3, "model_type": "deepseek_v32", "index_head_dim": 128}, 128, 56, 4096, 4096 * 61 * (1152 + 132)),
        # Not served with a latent: 40 heads of 64 + 32.
        (MINICPM_3, 40, 64, 4096, 4096 * 62 * 2 * 40 * 96 * 2),
        # 21 layers of each kind, two groups; the window and two steps exceed the context: 512 blocks, and one more.
        (GEMMA_2_9B, 8, 256, 8192, (512 + 513) * 16 * 21 * 2 * 8 * 256 * 2),
        # Layers 6, 12, 18 and 24 see all; 22 others make six groups of four. 511 + 16384 tokens are 1056 blocks.
        (GEMMA_3_1B, 1, 256, 32768, (2048 + 6 * 1057) * 16 * 4 * 2 * 256 * 2),
        # 127 + 16384 tokens are 1032 blocks.
        (GPT_OSS_20B, 8, 64, 131072, (8192 + 1033) * 16 * 12 * 2 * 8 * 64 * 2),
        # Each layer has the window: 4095 + 16384 tokens are 1280 blocks.
        (MISTRAL_7B, 8, 128, 32768, 1281 * 16 * 32 * 2 * 8 * 128 * 2),
        (QWEN_2_7B, 4, 128, 32768, 32768 * 28 * 2 * 4 * 128 * 2),
        # 13 and 12 are near: two groups of 13, one of them padded.
        (
            {**GPT_OSS_20B, "num_hidden_layers": 25, "layer_types": UNEVEN},
            8,
            64,
            131072,
            (8192 + 1033) * 16 * 13 * 2 * 8 * 64 * 2,
        ),
    ],
    ids=["MLA", "MLA with an index", "MiniCPM3", "Gemma 2", "Gemma 3", "gpt-oss", "Mistral", "Qwen 2", "padded"],
)
def test_a_sequence_takes_what_is_computed_by_hand(
    config: dict[str, Any], heads: int, head_dim: int, context: int, by_hand: int
) -> None:
    model = geometry(config, heads=heads, head_dim=head_dim)
    assert cache_use(model, width=2, devices=1, context=context, in_flight=IN_FLIGHT).per_sequence == by_hand


def test_a_latent_is_whole_on_each_device_and_heads_are_not() -> None:
    latent, heads = geometry(DEEPSEEK_V3, heads=128, head_dim=56), geometry(MISTRAL_7B, heads=8, head_dim=128)
    one, eight = (
        [cache_use(model, width=2, devices=devices, context=4096, in_flight=IN_FLIGHT) for model in (latent, heads)]
        for devices in (1, 8)
    )
    assert one[0].per_sequence == eight[0].per_sequence
    assert one[1].per_sequence == 8 * eight[1].per_sequence
    assert "one latent vector x 61 layers x 576 x 2 B, whole on each device" in eight[0].how


def test_the_arithmetic_of_a_window_is_shown() -> None:
    model = geometry(GPT_OSS_20B, heads=8, head_dim=64)
    assert cache_use(model, width=2, devices=1, context=131072, in_flight=IN_FLIGHT).how == (
        "keys and values x 2 groups of 12 layers x 8 heads x 64 x 2 B; "
        "1 with a window of 128 and 16,384 tokens under way"
    )


@pytest.mark.parametrize(
    "unknown",
    [
        {"layer_types": ["linear_attention", "full_attention"]},
        {"mamba_d_state": 16},
        {"compress_ratios": [4, 128]},
        {"layer_types": ["sliding_attention"], "sliding_window": None},
    ],
)
def test_what_cannot_be_sized_is_refused(unknown: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"layers whose cache deployctl cannot size|layers with a window of None"):
        read_attention(HERE, unknown, layers=2)


def test_a_pattern_of_letters_says_which_layers_have_a_window() -> None:
    """As EXAONE 4's config has it beside its list of layers: three local ones, then a global one."""
    config = {"model_type": "exaone4", "sliding_window": 4096, "sliding_window_pattern": "LLLG"}
    assert read_attention(HERE, config, layers=64) == {"window": 4096, "windowed": 48}


def test_a_folder_with_a_window_is_sized_with_it(tmp_path: Path) -> None:
    path = Llama().write(tmp_path / "llama")
    kinds = ["sliding_attention", "full_attention"]
    edit_json(path / "config.json", sliding_window=16, layer_types=kinds, max_position_embeddings=1 << 20)
    found: LlmCheckpoint = read_llm(path)
    assert (found.geometry.windowed, found.geometry.window) == (1, 16)
    target, wishes = find_target("26.08-cuda-sm90"), Wishes(gpu="H100-80GB", sequences=1)
    sized = size_model(found, target, wishes, dtype="bfloat16")
    # One layer keeps all 65536 blocks, the other 15 + 16384 tokens; two heads of 32.
    assert sized.kv_bytes_per_sequence == (65536 + 1026) * 16 * 2 * 2 * 32 * 2
    assert any("with a window of 16" in line for line in sized.lines())


def test_the_context_that_is_offered_fits(tmp_path: Path) -> None:
    path = Llama().write(tmp_path / "llama")
    kinds = ["sliding_attention", "full_attention"]
    edit_json(path / "config.json", sliding_window=16, layer_types=kinds, max_position_embeddings=1 << 20)
    found, target = read_llm(path), find_target("26.08-cuda-sm90")
    many = Wishes(gpu="H100-80GB", gpus=1, sequences=512)
    with pytest.raises(UsageError, match="does not fit") as refused:
        size_model(found, target, many, dtype="float32")
    offered = int(str(refused.value.fix).split()[1])
    fitting = Wishes(gpu="H100-80GB", gpus=1, sequences=512, context=offered)
    assert size_model(found, target, fitting, dtype="float32").sequences >= 512
