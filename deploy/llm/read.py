"""A folder with a causal language model, read and found whole: config, every shard, tokenizer, chat template.

Owns what must be there and fit together; whether a release of vLLM serves it is asked in `support`. Called by package.
Reads heads of files only, and runs none of the model's own code.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy.errors import UsageError
from deploy.files import sha256_bytes, sha256_file
from deploy.llm.adapters import read_adapters
from deploy.llm.cache import read_attention
from deploy.llm.model import Adapter, Geometry, LlmCheckpoint
from deploy.llm.safetensors import StoredTensor, read_header
from deploy.llm.tokenizer import check_tokenizer, has_chat_template
from deploy.records import read_object
from deploy.serve.vllm import short_positions

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_BESIDE = (
    CONFIG, "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json",
)  # fmt: skip
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_WRAPPED = re.compile(r"\.(?:lora_[AB]|base_layer|modules_to_save)\.")
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def read_llm(path: Path, adapters: tuple[tuple[str, Path], ...] = ()) -> LlmCheckpoint:
    """The language model in a folder, with its adapters: those given, and those in the folder's own sub-folders.

    Raises UsageError naming what is missing, cut short, or does not fit together.
    """
    _check_folder(path)
    config = read_object(path / CONFIG)
    architecture = _architecture(path, config)
    tensors, weight_files = _weights(path)
    geometry = _geometry(path, config)
    _check_tensors(path, config, geometry, tensors)
    check_tokenizer(path, vocabulary=geometry.vocabulary)
    chat, notes = has_chat_template(path), list(_notes(path, config, tensors))
    if not chat:
        notes.append("no chat template: clients must write the prompt's format themselves")
    found = read_adapters(adapters or tuple(_inner_adapters(path)), tensors)
    files = (*(name for name in _BESIDE if (path / name).is_file()), *weight_files)
    return LlmCheckpoint(
        path=path,
        digest=_digest(path, files, found),
        name=re.sub(r"[^A-Za-z0-9_.-]+", "_", path.resolve().name).strip("_.-") or "llm",
        architecture=architecture,
        dtype=_main_dtype(tensors),
        parameters=sum(tensor.elements for tensor in tensors.values()),
        stored_bytes=sum(tensor.size for tensor in tensors.values()),
        geometry=geometry,
        quantization=_quantization(config),
        chat_template=chat,
        files=tuple(sorted(files)),
        adapters=found,
        notes=tuple(notes),
    )


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise UsageError(
            f"{path} is {'a file' if path.exists() else 'not there'}",
            expected="the folder that save_pretrained wrote: config.json, safetensors and the tokenizer",
        )
    adapted = (path / ADAPTER_CONFIG).is_file()
    if (path / CONFIG).is_file() and adapted:
        raise UsageError(
            f"{path} holds a model and, beside it, a LoRA adapter ({ADAPTER_CONFIG}), which transformers would apply",
            expected="the model alone, and each adapter in a folder of its own",
            fix="move the adapter's files to a folder of their own, and name it with --adapter NAME=FOLDER",
        )
    if (path / CONFIG).is_file():
        return
    if adapted:
        base = read_object(path / ADAPTER_CONFIG).get("base_model_name_or_path") or "its base model"
        raise UsageError(
            f"{path} is a LoRA adapter of {base}, without the base model",
            expected="the base model's folder",
            fix=f"deployctl package BASE --backend vllm --adapter NAME={path}",
        )
    raise UsageError(f"{path} has no {CONFIG}", expected="what save_pretrained wrote", fix="save the model again")


def _architecture(path: Path, config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise UsageError(
            f"{path / CONFIG} names no architecture",
            expected='"architectures": ["LlamaForCausalLM"] or the like, which save_pretrained writes',
            fix="save it again: model.save_pretrained(FOLDER)",
        )
    return names[0]


def _weights(path: Path) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """Every tensor by name, and the files they lie in: the one file before an index, which may be of a save before."""
    if (path / SINGLE).is_file():
        return read_header(path / SINGLE), (SINGLE,)
    if not (path / INDEX).is_file():
        raise _no_weights(path)
    where = read_object(path / INDEX).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise UsageError(
            f"{path / INDEX} has no weight_map",
            expected="an index of shards",
            fix="save it again: model.save_pretrained(FOLDER)",
        )
    shards = sorted(set(map(str, where.values())))
    missing = [name for name in shards if "/" in name or not (path / name).is_file()]
    if missing:
        raise UsageError(
            f"{path} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing[:5])}",
            expected=f"every shard that {INDEX} names",
            fix="copy the missing files",
        )
    heads = {name: read_header(path / name) for name in shards}
    absent = [name for name, shard in where.items() if name not in heads[shard]]
    if absent:
        raise UsageError(
            f"{where[absent[0]]} does not hold {absent[0]}, nor {len(absent) - 1} more that the index says it does",
            expected="shards and an index of one save",
            fix="copy shards and index from the same folder",
        )
    return {name: heads[shard][name] for name, shard in where.items()}, (INDEX, *shards)


def _no_weights(path: Path) -> UsageError:
    torch = sorted(item.name for item in path.glob("*.bin"))
    return UsageError(
        f"{path} holds no safetensors" + (f", only {torch[0]}" if torch else ""),
        expected=f"{SINGLE}, or shards with {INDEX}",
        fix="load it with transformers and save it again: model.save_pretrained(FOLDER)",
    )


def _geometry(path: Path, config: Mapping[str, Any]) -> Geometry:
    """The sizes by the names that nearly all configs use, and those of older families."""

    def size(*names: str, default: int | None = None) -> int:
        name = next((name for name in names if config.get(name) is not None), names[0])
        found = default if config.get(name) is None else config[name]
        if type(found) is not int or found < 1:
            said = f"has no {names[0]}" if found is None else f"says that {name} is {found!r}"
            raise UsageError(
                f"{path / CONFIG} {said}",
                expected=f"{' or '.join(names)} as a number, of all layers",
                fix="save it again: model.save_pretrained(FOLDER)",
            )
        return found

    if isinstance(config.get("text_config"), Mapping):
        raise UsageError(
            f"{path} holds a model of several parts, {_architecture(path, config)}: its {CONFIG} has a text_config",
            expected="a language model alone, whose config.json has its sizes itself",
            fix="save the language model by itself, as the causal class of its text_config",
        )
    hidden, heads = size("hidden_size", "n_embd", "d_model"), size("num_attention_heads", "n_head", "n_heads")
    layers = size("num_hidden_layers", "n_layer", "n_layers")
    sizes = {"head_dim": size("head_dim", default=hidden // heads), **read_attention(path, config, layers=layers)}
    return Geometry(
        layers=layers,
        hidden=hidden,
        intermediate=size("intermediate_size", "n_inner", "ffn_dim", default=4 * hidden),
        heads=heads,
        kv_heads=size("num_key_value_heads", "num_kv_heads", default=heads),
        vocabulary=size("vocab_size"),
        positions=size("max_position_embeddings", "n_positions", "max_seq_len"),
        short=short_positions(config),
        **sizes,
    )


def _check_tensors(
    path: Path, config: Mapping[str, Any], geometry: Geometry, tensors: Mapping[str, StoredTensor]
) -> None:
    """Each layer that the config counts has tensors, and the embedding has the config's sizes."""
    wrapped = next((name for name in tensors if _WRAPPED.search(name)), None)
    if wrapped is not None:
        raise UsageError(
            f"{path} holds the weights of a model that PEFT has wrapped ({wrapped})",
            expected="the base model's own weights, or those of the merged model",
            fix="merge it: peft_model.merge_and_unload().save_pretrained(FOLDER); or save base and adapter apart",
        )
    numbers = {int(match[1]) for name in tensors if (match := _LAYER.search(name))}
    lost = next((number for number in range(geometry.layers) if number not in numbers), None) if numbers else None
    if lost is not None or (numbers and max(numbers) >= geometry.layers and not config.get("num_nextn_predict_layers")):
        raise UsageError(
            f"{path} holds {len(numbers)} layers" + (f", none of them number {lost}" if lost is not None else ""),
            expected=f"the {geometry.layers} that {CONFIG} counts",
            fix="copy config and weights of one save",
        )
    wanted = (geometry.vocabulary, geometry.hidden)
    for name, tensor in tensors.items():
        if name.endswith(("embed_tokens.weight", "wte.weight")) and tensor.shape != wanted:
            raise UsageError(
                f"{name} is {list(tensor.shape)}",
                expected=f"{list(wanted)}, the vocabulary and hidden size of {CONFIG}",
                fix="after adding tokens, call model.resize_token_embeddings before saving",
            )
    keys = [tensor.shape for name, tensor in tensors.items() if name.endswith(".self_attn.k_proj.weight")]
    rows = geometry.kv_heads * geometry.head_dim
    if keys and not geometry.latent and not _quantization(config) and all(shape[0] != rows for shape in keys):
        raise UsageError(
            f"the keys' weights of {path} have {keys[0][0]} rows",
            expected=f"{rows}: {CONFIG} says {geometry.kv_heads} heads of keys and values, of {geometry.head_dim} each",
            fix="copy config and weights of one save",
        )
    tied = config.get("tie_word_embeddings", True)
    if not tied and any(".layers." in name for name in tensors) and "lm_head.weight" not in tensors:
        raise UsageError(
            f"{path} has no lm_head.weight", expected='one, since "tie_word_embeddings" is false', fix="save it again"
        )


def _notes(path: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> Iterator[str]:
    declared = str(config.get("dtype") or config.get("torch_dtype") or "")
    stored = _main_dtype(tensors)
    if declared and declared != stored and not _quantization(config):
        yield f"{CONFIG} says {declared} and the weights are {stored}: served as the weights are"
    if short := short_positions(config):
        yield (
            f"LongRoPE: with a context of more than {short:,} tokens vLLM takes the factors for long prompts for short "
            f"ones too, and answers them otherwise than transformers; {short:,} unless --context says more"
        )
    if (path / SINGLE).is_file() and (path / INDEX).is_file():
        yield f"{SINGLE} is served, as transformers loads it, and not the shards that {INDEX} names"
    if config.get("auto_map"):
        yield "the folder's own modelling code is not used: vLLM serves its own of this architecture"
    left = sorted(item.name for item in path.iterdir() if item.is_file() and item.suffix in (".pt", ".bin", ".pth"))
    if left:
        yield f"left out, since serving does not need it: {', '.join(left)}"


def _main_dtype(tensors: Mapping[str, StoredTensor]) -> str:
    counted: Counter[str] = Counter()
    for tensor in tensors.values():
        counted[tensor.dtype] += tensor.elements
    most = counted.most_common(1)[0][0] if counted else "F32"
    return _DTYPES.get(most, most.lower())


def _quantization(config: Mapping[str, Any]) -> str | None:
    found = config.get("quantization_config")
    return str(found.get("quant_method", "unnamed")) if isinstance(found, dict) else None


def _inner_adapters(path: Path) -> Iterator[tuple[str, Path]]:
    """The adapters in the folder's own sub-folders, one or two levels down, each by its folder's name."""
    for config in sorted((*path.glob(f"*/{ADAPTER_CONFIG}"), *path.glob(f"*/*/{ADAPTER_CONFIG}"))):
        yield config.parent.name, config.parent


def _digest(path: Path, files: tuple[str, ...], adapters: tuple[Adapter, ...]) -> str:
    """The digest of what is served: of the lines `<sha256>  <name>`, sorted by name, adapters below `lora/<name>/`."""
    named = {name: path / name for name in files}
    named |= {f"lora/{one.name}/{name}": one.path / name for one in adapters for name in one.files}
    return sha256_bytes("".join(f"{sha256_file(named[name])}  {name}\n" for name in sorted(named)).encode())
