"""Lint rules on models of the vLLM backend, whose engine reads two JSON files beside the config.

Owns what vllm_backend's `model.py` asserts and refuses at load, and where the files' paths may lead. Called by `lint`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.errors import UsageError
from deploy.records import read_object
from deploy.repository.engine_files import ENGINE_FILE, LORA_FILE, inside_version
from deploy.repository.findings import Finding
from deploy.repository.protobuf import schema

BACKEND = "vllm"


def check_llm(config: Any) -> Iterator[Finding]:
    """The backend is decoupled, batches by itself, and chooses its devices by itself."""
    if config.backend != BACKEND:
        return
    if not config.model_transaction_policy.decoupled:
        yield "vllm-decoupled", "the vLLM backend needs model_transaction_policy { decoupled: true }"
    if config.max_batch_size != 0:
        yield "vllm-batch", f"max_batch_size is {config.max_batch_size}; vLLM batches by itself, so it must be 0"
    if "text_output" not in {tensor.name for tensor in config.output}:
        yield "vllm-output", "the output text_output is missing, whose dtype the backend looks up"
    for group in config.instance_group:
        if group.kind != schema().ModelInstanceGroup.KIND_MODEL or group.count > 1:
            yield "vllm-instances", "the instance group must be one of KIND_MODEL: vLLM chooses its devices itself"


def check_llm_files(config: Any, folder: Path) -> Iterator[Finding]:
    """Each version has its engine file, and every path in it leads to what lies in that very version."""
    if config.backend != BACKEND:
        return
    for number in config.version_policy.specific.versions:
        try:
            yield from _check_version(folder, number)
        except UsageError as error:
            yield "vllm-files", error.found


def _check_version(folder: Path, number: int) -> Iterator[Finding]:
    version = folder / str(number)
    arguments = read_object(version / ENGINE_FILE)
    yield from _check_place(version, f"{ENGINE_FILE}: model", arguments.get("model"))
    if str(arguments.get("enable_lora", False)).lower() != "true":
        return
    places = read_object(version / LORA_FILE)
    if not places:
        yield "vllm-files", f"{number}/{LORA_FILE} names no adapter"
    for name, place in places.items():
        yield from _check_place(version, f"{LORA_FILE}: {name}", place)


def _check_place(version: Path, what: str, place: object) -> Iterator[Finding]:
    inside = inside_version(str(place), version.parent.name, int(version.name))
    if inside is None:
        yield "vllm-path", f"{what} is {place!r}, no absolute path into {version.parent.name}/{version.name}/"
    elif not (version / inside).is_dir():
        yield "vllm-path", f"{what} leads to {inside}, which is not in the version"
