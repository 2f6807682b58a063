"""What vLLM keeps of each token in its KV cache, and for how long: read from `config.json`, and counted as vLLM counts.

Owns the kinds of attention that differ in it: keys and values per head, one latent vector (MLA), a sliding window.
Called by `read` and `sizing`.

The rules are those of vLLM 0.32:
- `ModelArchConfigConvertorBase.is_deepseek_mla`, `get_head_size`: with MLA a layer keeps one vector of
  `kv_lora_rank + qk_rope_head_dim` elements per token, no values beside it; `ModelConfig.get_num_kv_heads`: one head on
  every device, so tensor parallelism does not make it smaller.
- `DeepseekV32IndexerCache`: sparse attention keeps `index_head_dim` bytes per layer too, and 4 for each 128.
- `SlidingWindowSpec.max_admission_blocks_per_request`: a layer with a window keeps its last `window - 1` tokens and
  those of the steps in flight, in whole blocks and one more.
- `_get_kv_cache_groups_uniform_page_size`: where both kinds occur, layers form groups of equal size, that of the
  smaller kind, or of the larger one where that is less than half as large again; one that is not full is padded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.errors import UsageError
from deploy.llm.model import Geometry

# vLLM's own default of tokens per block on a GPU.
BLOCK = 16
_INDEX_GROUP = 128
# Other models with a `kv_lora_rank`, MiniCPM3 for one, are served with keys and values for each head.
_LATENT = frozenset(
    (
        *("axk1", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa"),
        *("kimi_k2", "longcat_flash", "pangu_ultra_moe"),
    )
)
# Every so-many-th layer sees all tokens, where the config does not list its layers: transformers' own defaults.
_PATTERNS = {"cohere2": 4, "gemma2": 2, "gemma3_text": 6, "gpt_oss": 2}
_KINDS: dict[str, tuple[type, ...]] = {
    "layer_types": (list,),
    "sliding_window_pattern": (int, str),
    "max_window_layers": (int,),
    "index_head_dim": (int,),
}
_WINDOWED = "sliding_attention"
_FULL = "full_attention"
# What says that some layers keep a state instead of tokens.
_STATES = ("mamba_d_state", "ssm_cfg", "linear_num_value_heads", "hybrid_override_pattern", "attn_layer_period")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """What one sequence takes on each device, in bytes: per token where all layers keep it, and in full length."""

    per_token: int
    per_sequence: int
    how: str


def read_attention(path: Path, config: Mapping[str, Any], *, layers: int) -> dict[str, int]:
    """The fields of a Geometry that say what its cache holds, beyond the heads.

    Raises UsageError if some layers keep what this arithmetic does not know, or a value is none that a config has.
    """
    _check_kinds(path, config)
    _check_known(path, config)
    windowed = _windowed_layers(path, config, layers)
    found = {"window": int(config["sliding_window"]), "windowed": windowed} if windowed else {}
    rank, rope = config.get("kv_lora_rank"), config.get("qk_rope_head_dim")
    if not isinstance(rank, int) or not isinstance(rope, int):
        return found
    if config.get("model_type") in _LATENT:
        index = config.get("index_head_dim") or 0
        return found | {"latent": rank + rope, "index_bytes": index + index // _INDEX_GROUP * 4}
    plain = config.get("qk_nope_head_dim")
    return found | ({"head_dim": rope + plain} if isinstance(plain, int) else {})


def cache_use(geometry: Geometry, *, width: int, devices: int, context: int, in_flight: int) -> CacheUse:
    """What one sequence of `context` tokens takes of the cache on each of `devices`; an element has `width` bytes.

    `in_flight` are the tokens that steps under way may hold.
    """
    layer, kept = _layer_bytes(geometry, width, devices)
    full, windowed = geometry.layers - geometry.windowed, geometry.windowed
    every = -(-context // BLOCK)
    size, (full_groups, windowed_groups) = _groups(full, windowed)
    blocks = full_groups * every
    if windowed:
        blocks += windowed_groups * (-(-min(geometry.window - 1 + in_flight, context) // BLOCK) + 1)
    how = kept.format(layers=f"{geometry.layers} layers")
    if windowed:
        how = kept.format(layers=f"{full_groups + windowed_groups} groups of {size} layers")
        how += f"; {windowed_groups} with a window of {geometry.window:,} and {in_flight:,} tokens under way"
    return CacheUse(per_token=layer * geometry.layers, per_sequence=blocks * BLOCK * size * layer, how=how)


def _layer_bytes(geometry: Geometry, width: int, devices: int) -> tuple[int, str]:
    """The bytes of a token in one layer on each device, and the words for them with a place for the layers."""
    if geometry.latent:
        index = f", and {geometry.index_bytes} B of the index" if geometry.index_bytes else ""
        how = f"one latent vector x {{layers}} x {geometry.latent} x {width} B{index}, whole on each device"
        return geometry.latent * width + geometry.index_bytes, how
    # A head of keys and values is not split further: with more devices than heads each has one.
    heads = max(1, -(-geometry.kv_heads // devices))
    how = f"keys and values x {{layers}} x {heads} heads x {geometry.head_dim} x {width} B"
    return 2 * heads * geometry.head_dim * width, how


def _groups(full: int, windowed: int) -> tuple[int, tuple[int, int]]:
    """How many layers a group has, and how many groups see all tokens and a window of them."""
    if not full or not windowed:
        return full or windowed, (int(full > 0), int(windowed > 0))
    small, large = sorted((full, windowed))
    size = large if large < 1.5 * small else small
    return size, (-(-full // size), -(-windowed // size))


def _check_kinds(path: Path, config: Mapping[str, Any]) -> None:
    """Raises UsageError for a value of another kind than every config has there."""
    for name, kinds in _KINDS.items():
        value = config.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise UsageError(
                f"{path} says in its config.json that {name} is {value!r}",
                expected=" or ".join({int: "a number", str: "text", list: "a list"}[kind] for kind in kinds),
                fix="save it again: model.save_pretrained(FOLDER)",
            )


def _check_known(path: Path, config: Mapping[str, Any]) -> None:
    kinds = {str(kind) for kind in config.get("layer_types") or ()} - {_FULL, _WINDOWED}
    states = [name for name in _STATES if config.get(name)]
    compressed = ["compress_ratios"] if config.get("compress_ratios") else []
    if found := [*sorted(kinds), *states, *compressed]:
        raise UsageError(
            f"{path} has layers whose cache deployctl cannot size: its config says {', '.join(found)}",
            expected="layers of full or sliding attention, with keys and values or one latent vector",
            fix="write model.json by hand, and let vLLM measure at start how much fits",
        )


def _windowed_layers(path: Path, config: Mapping[str, Any], layers: int) -> int:
    """How many layers see a window of the tokens only."""
    kind, window = str(config.get("model_type", "")), config.get("sliding_window")
    # Qwen's configs name a window that is not used unless they say so.
    used = config.get("use_sliding_window", not kind.startswith("qwen"))
    listed = config.get("layer_types")
    if not used or not isinstance(window, int) or window < 1:
        if isinstance(listed, list) and _WINDOWED in listed and used:
            raise UsageError(f"{path} has layers with a window of {window}", expected="sliding_window as a number")
        return 0
    if isinstance(listed, list):
        return listed[:layers].count(_WINDOWED)
    if kind.startswith("qwen"):
        return max(0, layers - (config.get("max_window_layers") or layers))
    pattern = config.get("sliding_window_pattern") or _PATTERNS.get(kind)
    if isinstance(pattern, str):  # one letter per layer, as EXAONE 4's LLLG: local and global
        times, rest = divmod(layers, len(pattern))
        return times * pattern.count("L") + pattern[:rest].count("L")
    return layers - layers // int(pattern) if pattern else layers
