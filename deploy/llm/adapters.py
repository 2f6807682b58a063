"""LoRA adapters as PEFT saves them, held against the model that they adapt.

Owns what vLLM serves of LoRA and what it does not. Called by `read`. Reads heads of files only.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.checkpoint.adapters import BASE_UNCHANGED
from deploy.errors import UsageError
from deploy.llm.model import Adapter
from deploy.llm.safetensors import StoredTensor, read_header
from deploy.records import read_object

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(A|B|embedding_A|embedding_B)(?:\.default)?(?:\.weight)?")
_VARIANTS = ("alora_invocation_tokens", "layer_replication", "monteclora_config", "use_bdlora", "use_qalora")
# vLLM allocates room for one of these ranks (vllm/config/lora.py: MaxLoRARanks).
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def read_adapters(given: tuple[tuple[str, Path], ...], base: Mapping[str, StoredTensor]) -> tuple[Adapter, ...]:
    """The adapters by name. Raises UsageError if one cannot be served on the model whose tensors are `base`."""
    names = [name for name, _ in given]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two adapters are called {twice!r}", expected="one name each", fix="use --adapter NAME=DIR")
    return tuple(_read(name, path, base) for name, path in given)


def _read(name: str, path: Path, base: Mapping[str, StoredTensor]) -> Adapter:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be an adapter's name", expected="letters, digits, '_', '.' or '-'")
    for file in (_CONFIG, _WEIGHTS):
        if not (path / file).is_file():
            raise UsageError(
                f"{path} has no {file}",
                expected="a LoRA adapter as PEFT saves it",
                fix="write it with peft_model.save_pretrained(FOLDER)",
            )
    config = read_object(path / _CONFIG)
    rank = _rank(path, config)
    tensors = read_header(path / _WEIGHTS)
    _check_tensors(path, rank, tensors, base)
    return Adapter(
        name=name,
        path=path,
        rank=rank,
        size=sum(tensor.size for tensor in tensors.values()),
        parameters=sum(tensor.elements for tensor in tensors.values()),
        files=(_CONFIG, _WEIGHTS),
    )


def _rank(path: Path, config: Mapping[str, Any]) -> int:
    """The rank of a plain LoRA adapter; what vLLM does not serve is refused."""
    kind, rank = config.get("peft_type"), config.get("r")
    if kind != "LORA" or not isinstance(rank, int) or rank < 1:
        raise UsageError(
            f"{path} is a {kind} adapter of rank {rank}",
            expected="LORA with a rank of at least 1",
            fix="merge it into its base: peft_model.merge_and_unload().save_pretrained(FOLDER)",
        )
    refused = {
        "use_dora": bool(config.get("use_dora")),
        "bias": config.get("bias", "none") != "none",
        "modules_to_save": bool(config.get("modules_to_save")),
        "rank_pattern": bool(config.get("rank_pattern")),
        "lora_bias": bool(config.get("lora_bias")),
        # Vanilla LoRA is what vLLM would compute of these instead, as far as its release does not refuse them.
        **{name: bool(config.get(name)) for name in _VARIANTS},
        # vLLM 0.32 follows it; releases of before read one alpha for all, and nothing would say so.
        "alpha_pattern": bool(config.get("alpha_pattern")),
        # What it took out of the base's weights would still be in those that vLLM adds the adapter to.
        f"init_lora_weights {config.get('init_lora_weights')}": config.get("init_lora_weights") not in BASE_UNCHANGED,
    }
    found = [name for name, there in refused.items() if there]
    if found:
        raise UsageError(
            f"{path} uses {', '.join(found)}, which vLLM does not serve as an adapter",
            expected="a plain LoRA adapter",
            fix="merge it into its base: peft_model.merge_and_unload().save_pretrained(FOLDER)",
        )
    if rank > RANKS[-1]:
        raise UsageError(
            f"{path} has rank {rank}",
            expected=f"at most {RANKS[-1]}, which vLLM serves",
            fix="merge it into its base: peft_model.merge_and_unload().save_pretrained(FOLDER)",
        )
    return rank


def _check_tensors(
    path: Path, rank: int, tensors: Mapping[str, StoredTensor], base: Mapping[str, StoredTensor]
) -> None:
    """Each pair fits a weight of the base: A is [rank, in], B is [out, rank]."""
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        weight = base.get(f"{match[1]}.weight") if match else None
        if match is None or weight is None:
            raise UsageError(
                f"{path} adapts {name}, which the model does not have",
                expected="an adapter of this very model",
                fix="check base_model_name_or_path of its adapter_config.json",
            )
        if match[2] not in ("A", "B"):
            raise UsageError(
                f"{path} adapts an embedding ({name})",
                expected="adapted projections only",
                fix="merge it into its base: peft_model.merge_and_unload().save_pretrained(FOLDER)",
            )
        wanted = (rank, weight.shape[1]) if match[2] == "A" else (weight.shape[0], rank)
        if tensor.shape != wanted:
            raise UsageError(
                f"{name} of {path} is {list(tensor.shape)}",
                expected=f"{list(wanted)} for rank {rank} beside {list(weight.shape)}",
                fix="use the adapter that was trained on this model",
            )
