"""A LoRA or DoRA adapter that PEFT saved is merged into the weights it was trained on: W + scale * B A.

Owns the adapter's files and this arithmetic, in float64 and rounded once to the base's dtype. DoRA then gives each
output the length that it learnt: m (W + scale * B A) / ||W + scale * B A||. What is neither is refused with PEFT's own
way out. Works on named tensors, so that the merged weights are identified like any others.
Called by load.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.checkpoint.formats import read_stored
from deploy.checkpoint.weights import strip_prefixes
from deploy.errors import UsageError
from deploy.files import sha256_bytes, sha256_path

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_PAIR = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB]|magnitude_vector)(\.weight)?")
_LENGTHS = "magnitude_vector"  # DoRA's, one for each output of a layer, or for each column of an embedding
_MERGE = "merge it where it was trained: torch.save(model.merge_and_unload().state_dict(), 'merged.pt')"
# What changes the arithmetic beyond W + scale * B A.
_BEYOND = (
    "lora_bias", "target_parameters", "layer_replication", "use_qalora", "alora_invocation_tokens",
    "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "trainable_token_indices",
)  # fmt: skip
# How matrices began where the base stayed as it was. Others, such as PiSSA, OLoRA and LoftQ, took a part out of the
# base's weights: what is saved changes that rest, and merged into the base itself it would count the part twice.
BASE_UNCHANGED = (True, False, None, "gaussian", "eva", "orthogonal")
_CONVERT = (
    "save it as a change of the base itself, peft_model.save_pretrained(folder, "
    "path_initial_model_for_weight_conversion=...), or merge it where it was trained: "
    "torch.save(model.merge_and_unload().state_dict(), 'merged.pt')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter's settings, its pairs of matrices by module, and tensors that replace the base's whole."""

    folder: Path
    config: Mapping[str, Any]
    pairs: dict[str, dict[str, "Tensor"]]
    whole: dict[str, "Tensor"]


def is_adapter(path: Path) -> bool:
    """Whether `path` is a folder of PEFT's."""
    return (path / CONFIG).is_file()


def adapters_inside(path: Path) -> list[str]:
    """The adapters that PEFT saved in folders of their own below `path`: those of any name but `default`."""
    return sorted(file.parent.name for file in path.glob(f"*/{CONFIG}")) if path.is_dir() else []


def require_base(path: Path, base: Path | None) -> Path:
    """The base's path. Raises UsageError if an adapter comes without one, or a base without an adapter."""
    if is_adapter(path) and base is not None:
        return base
    inside = adapters_inside(path)
    if inside:
        raise UsageError(
            f"{path} holds adapters in folders of their own: {', '.join(inside)}",
            expected="one adapter",
            fix=f"name its folder: {path / inside[0]} --base CHECKPOINT",
        )
    if base is not None:
        raise UsageError(
            f"--base was given, and {path} is no adapter",
            expected=f"a folder that PEFT saved, with {CONFIG}",
            fix="leave out --base",
        )
    raise UsageError(
        f"{path} is an adapter of PEFT's, a change to weights that are not in it",
        expected="the checkpoint that it was trained on",
        fix="add --base CHECKPOINT",
    )


def require_merged(path: Path, names: Iterable[str]) -> None:
    """Raises UsageError for the state_dict of a model that PEFT has wrapped: its matrices lack their scale."""
    if any(".lora_A." in name or ".lora_embedding_A." in name for name in names):
        raise UsageError(
            f"{path} holds the low-rank matrices of an adapter beside the weights they change, and not their scale",
            expected="merged weights, or the folder that PEFT saves and its base",
            fix=f"{_MERGE}; or model.save_pretrained(folder), and package that with --base",
        )


def digest_of(path: Path, base: Path) -> str:
    """The hex SHA-256 of two lines as `sha256sum` would write them: the adapter's folder and its base."""
    return sha256_bytes(f"{sha256_path(path)}  adapter\n{sha256_path(base)}  base\n".encode())


def merge(
    tensors: Mapping[str, "Tensor"], adapter: Adapter, *, transposed: Collection[str] | None = None
) -> dict[str, "Tensor"]:
    """The base's tensors, without wrapper prefixes, with the adapter in them. Raises UsageError if it does not fit.

    `transposed` are the modules whose weights are stored as [inputs, outputs], where they are known: PEFT goes by each
    module, and its `fan_in_fan_out` says only of which kind the last one was.
    """
    targets = [f"{module}.weight" for module in adapter.pairs]
    forms = [form for _, form in strip_prefixes(tensors)]
    fitting = next((form for form in forms if all(name in form for name in targets)), None)
    if fitting is None:
        missing = [name for name in targets if name not in forms[-1]]
        raise UsageError(
            f"the adapter {adapter.folder} changes weights that its base has not: {', '.join(missing[:3])}",
            expected="the checkpoint that it was trained on",
            fix="give that one as --base",
        )
    merged = {**fitting, **adapter.whole}
    for module, pair in adapter.pairs.items():
        name = f"{module}.weight"
        by_config = bool(adapter.config.get("fan_in_fan_out"))
        turned = by_config if transposed is None else module in transposed
        merged[name] = _changed(adapter, module, fitting[name], pair, transposed=turned)
    return merged


def read_adapter(folder: Path) -> Adapter:
    """What PEFT saved, by the names that the base's tensors have. Raises UsageError if it is no plain LoRA."""
    config = _read_config(folder)
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        raise UsageError(f"{folder} lacks its weights", expected=" or ".join(_FILES), fix="copy the whole folder")
    pairs: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key, tensor in read_stored(path).content.items():
        name = str(key).removeprefix(_PREFIX)
        if ".original_module." in name:
            continue  # with bias="all" PEFT saves the base's own head beside the one that replaced it
        if found := _PAIR.fullmatch(name):
            pairs.setdefault(found["module"], {})[f"{found['kind'] or ''}{found['side']}"] = tensor
        elif ".lora_" in name:
            raise _not_plain(folder, f"holds {name}")
        else:
            whole[name.replace(".modules_to_save.", ".").replace(".base_layer.", ".")] = tensor
    return Adapter(folder=folder, config=config, pairs=pairs, whole=whole)


def _read_config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except ValueError as error:
        raise UsageError(f"{folder / CONFIG} is no JSON: {error}", fix="copy the folder again") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise _not_plain(folder, f"is an adapter of the type {kind}")
    beyond = next((key for key in _BEYOND if config.get(key)), None)
    if beyond:
        raise _not_plain(folder, f"was trained with {beyond}")
    began = config.get("init_lora_weights")
    if began not in BASE_UNCHANGED:
        raise UsageError(
            f"{folder} began as {began}, which took a part out of the base's weights",
            expected="an adapter of the base itself: W + scale * B A would count that part twice",
            fix=_CONVERT,
        )
    return config


def _not_plain(folder: Path, what: str) -> UsageError:
    return UsageError(f"{folder} {what}", expected="plain LoRA, whose merge is W + scale * B A, or DoRA", fix=_MERGE)


def _changed(
    adapter: Adapter, module: str, weight: "Tensor", pair: Mapping[str, "Tensor"], *, transposed: bool
) -> "Tensor":
    """The weight with its pair of matrices in it. Raises UsageError if they do not fit it."""
    import torch

    sides = {side: matrix.to(torch.float64) for side, matrix in pair.items()}
    lengths = sides.pop(_LENGTHS, None)
    by_columns = transposed
    if set(sides) == {"embedding_A", "embedding_B"}:
        rank, change = sides["embedding_A"].shape[0], (sides["embedding_B"] @ sides["embedding_A"]).T
        by_columns = True
    elif set(sides) == {"A", "B"}:
        a, b = sides["A"], sides["B"]
        rank, change = a.shape[0], (b.flatten(1) @ a.flatten(1)).reshape(b.shape[0], *a.shape[1:])
        if transposed:
            change = change.T
    else:
        raise UsageError(f"{adapter.folder} has only {', '.join(sides)} for {module}", expected="a pair of matrices")
    if change.shape != weight.shape:
        raise UsageError(
            f"the adapter {adapter.folder} changes {module}.weight by a tensor of shape {list(change.shape)}, and the "
            f"base has {list(weight.shape)}",
            expected="the checkpoint that it was trained on",
            fix="give that one as --base; a grouped convolution's is merged by PEFT alone",
        )
    merged = weight.to(torch.float64) + _scale(adapter.config, module, rank) * change
    return _with_lengths(adapter, module, merged, lengths=lengths, axis=1 if by_columns else 0).to(weight.dtype)


def _with_lengths(adapter: Adapter, module: str, weight: "Tensor", *, lengths: "Tensor | None", axis: int) -> "Tensor":
    """The weight, its slices along `axis` of these Euclidean lengths where DoRA has some. Raises UsageError."""
    asked = bool(adapter.config.get("use_dora"))
    if (lengths is not None) != asked:
        raise UsageError(
            f"{adapter.folder} has {'no' if lengths is None else 'a'} {_LENGTHS} for {module}, and its {CONFIG} says "
            f"{'use_dora' if asked else 'nothing of use_dora'}",
            expected="a config and weights that were saved together",
            fix="copy the whole folder",
        )
    if lengths is None:
        return weight
    if lengths.numel() != weight.shape[axis]:
        raise UsageError(
            f"the adapter {adapter.folder} has {lengths.numel()} lengths for {module}, whose weight has "
            f"{weight.shape[axis]} outputs",
            expected="the checkpoint that it was trained on",
            fix="give that one as --base",
        )
    own = weight.transpose(0, axis).flatten(1).norm(dim=1)
    shape = [-1 if index == axis else 1 for index in range(weight.dim())]
    turned: Tensor = weight * (lengths.flatten() / own).reshape(shape)
    return turned


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """PEFT's scale for a module: alpha over the rank, or over its root; a pattern may give the module its own alpha."""
    patterns = config.get("alpha_pattern") or {}
    own = next((alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), None)
    alpha = float(config.get("lora_alpha", rank) if own is None else own)
    return float(alpha / rank**0.5 if config.get("use_rslora") else alpha / rank)
