"""Weights that torchao has quantized after quantization-aware training, as the floats that they stand for.

Owns which of its tensors are taken and which are refused. A weight in int8 or int4 with its scales is a float weight
exactly, and the network of these floats is the one that was trained. Imports torchao on use only. Called by formats.
"""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.checkpoint.pickles import load_plain
from deploy.errors import MissingError, UsageError

TORCHAO = "torchao."
# What says that inputs are quantized too, whenever the network runs.
_ACTIVATIONS = ("activation_quantization", "act_quant_kwargs", "act_quant_scale")


def read_quantized(path: Path, *, mmap: bool) -> object:
    """What was saved, torchao's tensors with it. Raises MissingError without torchao, else as `load_plain` does."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of kernels for other machines that it cannot load
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchao.quantization  # noqa: F401 - registers its tensors with torch's reader
    except ImportError as error:
        raise MissingError(
            f"{path} holds weights that torchao has quantized, and torchao cannot be imported: {error}",
            expected="the release that quantized them, or a later one",
            fix='pip install "deployctl[torchao]"',
        ) from error
    finally:
        logging.disable(previous)
    return load_plain(path, mmap=mmap)


def dequantized(path: Path, content: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """The content with plain float tensors in place of torchao's, and a note that says so; as it is without any.

    Raises UsageError for weights whose network quantizes its activations too.
    """
    kinds: dict[str, int] = {}
    plain = {key: _plain(path, str(key), value, kinds) for key, value in content.items()}
    if not kinds:
        return content, ()
    found = ", ".join(f"{count} as {kind}" for kind, count in sorted(kinds.items()))
    note = f"weights that torchao has quantized ({found}) are computed with as the floats that they stand for"
    return plain, (note,)


def _plain(path: Path, name: str, value: Any, kinds: dict[str, int]) -> Any:
    if isinstance(value, Mapping):
        inner = {key: _plain(path, f"{name}.{key}", held, kinds) for key, held in value.items()}
        return inner if any(inner[key] is not held for key, held in value.items()) else value
    if not type(value).__module__.startswith(TORCHAO):
        return value
    activations = type(value).__name__.startswith("LinearActivation") or any(
        getattr(value, fact, None) is not None for fact in _ACTIVATIONS
    )
    if activations:
        raise UsageError(
            f"{path}: {name} is {type(value).__name__} of torchao, whose network quantizes its activations too",
            expected="weights alone in int8 or int4: neither format carries torchao's quantizing of activations",
            fix="train and convert for weights only, such as IntxWeightOnlyConfig, or package the float weights, saved "
            "before quantize_ converts them",
        )
    kinds[_kind(value)] = kinds.get(_kind(value), 0) + 1
    return value.dequantize().contiguous()


def _kind(value: Any) -> str:
    """The integers that a weight is held in, such as `int4`."""
    dtype = getattr(value, "target_dtype", None) or getattr(getattr(value, "qdata", None), "dtype", None)
    return str(dtype).removeprefix("torch.") if dtype is not None else type(value).__name__
