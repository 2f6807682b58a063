"""A folder of safetensors files is read as one file would be, whoever wrote it: Accelerate's, of any network."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deploy.checkpoint.load import build_module, read_checkpoint
from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from deploy.errors import UsageError
from tests.models import IMAGE
from tests.packaging import lively

NET = "tests.models:ConvNet"


def read(path: Path, factory: str | None = NET) -> Checkpoint:
    return read_checkpoint(CheckpointRequest(path=path, factory=factory, input_shapes=(IMAGE,) if factory else ()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards and their index, as Accelerate saves a model, the optimizer's state beside them."""
    state = lively(0).state_dict()
    shards = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(state)}
    for shard in {*shards.values()}:
        save_file({name: state[name] for name in state if shards[name] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    torch.save({"state": {}}, tmp_path / "optimizer.bin")
    return tmp_path


@pytest.mark.parametrize("config", [False, True], ids=["without a config", "with one of its own"])
def test_shards_are_one_network_of_the_factory(folder: Path, *, config: bool) -> None:
    if config:
        (folder / "config.json").write_text('{"hidden": 3}')
    checkpoint = read(folder)
    assert (checkpoint.format, checkpoint.how, checkpoint.size) == ("safetensors", "factory", size_of(folder))
    built = build_module(checkpoint).state_dict()
    assert all(torch.equal(built[name], value) for name, value in lively(0).state_dict().items())


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UsageError, match=r"lacks 1 of its 2 weight files: model-00002-of-00002\.safetensors"):
        read(folder)


def test_a_network_that_nothing_names_asks_for_its_config_or_a_factory(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"holds weights and no config\.json(.|\n)*--factory package\.module:function"):
        read(folder, factory=None)


def test_a_folder_that_names_its_weights_otherwise_says_how_to_save_them(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"do not fit(.|\n)*torch\.save\(module\.state_dict\(\), 'weights\.pt'\)"):
        read(folder, factory="torch.nn:Identity")
