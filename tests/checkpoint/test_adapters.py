"""A LoRA adapter is merged as PEFT merges it, and what is no plain LoRA is refused with the way out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deploy.checkpoint.load import build_module, read_checkpoint
from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from deploy.errors import UsageError
from tests.models import IMAGE
from tests.packaging import lively

CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}
PREFIX = "base_model.model."


def matrices() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {
        f"{PREFIX}features.3.lora_A.weight": torch.randn(2, 8, 3, 3),
        f"{PREFIX}features.3.lora_B.weight": torch.randn(8, 2, 1, 1),
        f"{PREFIX}head.weight": torch.randn(7, 8),
        f"{PREFIX}head.bias": torch.randn(7),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter that changes a convolution and brings a head for more classes; its base was saved by DDP."""
    (tmp_path / "adapter").mkdir()
    put(tmp_path / "adapter", CONFIG, matrices())
    state = lively(0).state_dict()
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "base.pt")
    return tmp_path / "adapter"


def test_the_weights_of_a_wrapped_model_are_refused_with_both_ways_out(folder: Path) -> None:
    state = {f"{PREFIX}{name}": tensor for name, tensor in lively(0).state_dict().items()}
    torch.save({**state, f"{PREFIX}head.lora_A.default.weight": torch.ones(2, 8)}, folder.parent / "wrapped.pt")
    for factory in (None, "tests.models:ConvNet"):
        with pytest.raises(UsageError, match=r"not their scale(.|\n)*merge_and_unload(.|\n)*--base"):
            read_checkpoint(
                CheckpointRequest(path=folder.parent / "wrapped.pt", factory=factory, input_shapes=(IMAGE,))
            )


def put(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")


def read(folder: Path, base: str | None = "base.pt") -> Checkpoint:
    return read_checkpoint(
        CheckpointRequest(
            path=folder,
            base=folder.parent / base if base else None,
            factory="tests.models:ConvNet",
            input_shapes=(IMAGE,),
        )
    )


def refusal(folder: Path, base: str | None = "base.pt") -> str:
    with pytest.raises(UsageError) as caught:
        read(folder, base)
    return str(caught.value)


@pytest.mark.parametrize(
    ("more", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"alpha_pattern": {r"features\.3": 1}}, 0.5),
        ({"init_lora_weights": "gaussian"}, 3.0),
    ],
    ids=["alpha / r", "rslora", "its own alpha", "another beginning"],
)
def test_an_adapter_is_merged_into_its_base(more: dict[str, Any], scale: float, folder: Path) -> None:
    put(folder, {**CONFIG, **more}, matrices())
    checkpoint = read(folder)
    assert (checkpoint.name, checkpoint.num_classes) == ("adapter", 7)
    assert any("base.pt" in note for note in checkpoint.notes)
    found, given, before = build_module(checkpoint).state_dict(), matrices(), lively(0).state_dict()
    a, b = given[f"{PREFIX}features.3.lora_A.weight"], given[f"{PREFIX}features.3.lora_B.weight"]
    wanted = before["features.3.weight"] + scale * torch.einsum("or,rihw->oihw", b[:, :, 0, 0], a)
    torch.testing.assert_close(found["features.3.weight"], wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(found["head.weight"], given[f"{PREFIX}head.weight"])
    assert torch.equal(found["features.0.weight"], before["features.0.weight"])


def test_the_digest_is_of_both(folder: Path) -> None:
    first = read(folder).digest
    base = folder.parent / "base.pt"
    torch.save(lively(1).state_dict(), base)
    second = read(folder).digest
    put(folder, {**CONFIG, "lora_alpha": 7}, matrices())
    assert len({first, second, read(folder).digest}) == 3


def test_an_adapter_asks_for_its_base(folder: Path) -> None:
    assert "add --base CHECKPOINT" in refusal(folder, None)


def test_a_base_without_an_adapter_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="leave out --base"):
        read_checkpoint(CheckpointRequest(path=folder.parent / "base.pt", base=folder.parent / "base.pt"))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "another type": (lambda path: put(path, {"peft_type": "LOHA"}, matrices()), "an adapter of the type LOHA"),
    "DoRA without its lengths": (
        lambda path: put(path, {**CONFIG, "use_dora": True}, matrices()),
        "has no magnitude_vector for features.3, and its adapter_config.json says use_dora",
    ),
    "a bias of its own": (
        lambda path: put(path, {**CONFIG, "lora_bias": True}, matrices()),
        "was trained with lora_bias",
    ),
    "PiSSA": (
        lambda path: put(path, {**CONFIG, "init_lora_weights": "pissa_niter_4"}, matrices()),
        "began as pissa_niter_4, which took a part out of the base's weights",
    ),
    "OLoRA": (
        lambda path: put(path, {**CONFIG, "init_lora_weights": "olora"}, matrices()),
        "path_initial_model_for_weight_conversion",
    ),
    "tokens of its own": (
        lambda path: put(path, {**CONFIG, "trainable_token_indices": [3]}, matrices()),
        "was trained with trainable_token_indices",
    ),
    "a vector": (
        lambda path: put(path, CONFIG, {**matrices(), f"{PREFIX}features.3.lora_magnitude_vector": torch.ones(8)}),
        "has a magnitude_vector for features.3, and its adapter_config.json says nothing of use_dora",
    ),
    "lengths of another layer": (
        lambda path: put(
            path,
            {**CONFIG, "use_dora": True},
            {**matrices(), f"{PREFIX}features.3.lora_magnitude_vector": torch.ones(7)},
        ),
        "has 7 lengths for features.3, whose weight has 8 outputs",
    ),
    "an unknown part": (
        lambda path: put(path, CONFIG, {**matrices(), f"{PREFIX}head.lora_gate.weight": torch.ones(2)}),
        "holds head.lora_gate.weight",
    ),
    "one side": (
        lambda path: put(path, CONFIG, {f"{PREFIX}head.lora_A.weight": torch.ones(2, 8)}),
        "has only A for head",
    ),
    "another base": (
        lambda path: put(
            path,
            CONFIG,
            {f"{PREFIX}q.lora_A.weight": torch.ones(2, 8), f"{PREFIX}q.lora_B.weight": torch.ones(8, 2)},
        ),
        "that its base has not: q.weight",
    ),
    "another shape": (
        lambda path: put(
            path,
            CONFIG,
            {f"{PREFIX}head.lora_A.weight": torch.ones(2, 9), f"{PREFIX}head.lora_B.weight": torch.ones(5, 2)},
        ),
        "by a tensor of shape [5, 9], and the base has [5, 8]",
    ),
    "no weights": (lambda path: (path / "adapter_model.safetensors").unlink(), "lacks its weights"),
    "no JSON": (lambda path: (path / "adapter_config.json").write_text("{"), "is no JSON"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_plain_lora_is_refused(what: str, folder: Path) -> None:
    put_broken, words = BROKEN[what]
    put_broken(folder)
    assert words in refusal(folder)
