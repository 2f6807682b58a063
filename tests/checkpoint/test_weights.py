"""Weights are found where people put them, and never guessed where there are several."""

from typing import Any

import pytest
import torch
from torch import Tensor

from deploy.checkpoint.tensors import check_finite, check_floats, check_usable, main_dtype
from deploy.checkpoint.training import training_facts
from deploy.checkpoint.weights import find_weights, left_out_notes, strip_prefixes, unwrap
from deploy.errors import UsageError
from tests.checkpoint.checkpoints import prefixed

RAW = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}
EMA = {"fc.weight": torch.full((2, 3), 2.0), "fc.bias": torch.zeros(2)}
ADAM = {"state": {0: {"exp_avg": torch.ones(2), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}

LAYOUTS: dict[str, tuple[dict[str, Any], str | None]] = {
    "bare": (RAW, None),
    "pytorch imagenet example": ({"epoch": 1, "arch": "resnet18", "state_dict": RAW, "optimizer": ADAM}, "state_dict"),
    "torchvision references": ({"model": RAW, "optimizer": ADAM, "lr_scheduler": {"last_epoch": 3}}, "model"),
    "tutorial": ({"epoch": 1, "model_state_dict": RAW, "optimizer_state_dict": ADAM}, "model_state_dict"),
    "net": ({"net": RAW, "acc": 90.0}, "net"),
    "weights": ({"weights": RAW}, "weights"),
    "module": ({"module": RAW}, "module"),
    "nested": ({"checkpoint": {"model": {"state_dict": RAW}}}, "checkpoint.model.state_dict"),
    "unusual name": ({"backbone_and_head": RAW, "epoch": 1}, "backbone_and_head"),
    "two, one of them usual": ({"model": RAW, "teacher": EMA}, "model"),
    "random state beside it": ({"state_dict": RAW, "rng": torch.zeros(8)}, "state_dict"),
    "loose tensors and numbers": ({**RAW, "epoch": 3}, None),
}


def refusal(content: dict[str, Any], wanted: Any = None) -> str:
    with pytest.raises(UsageError) as caught:
        find_weights(content, wanted)
    return str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_raw_weights_are_found(layout: str) -> None:
    content, under = LAYOUTS[layout]
    found = find_weights(content, None)
    assert found.under == under
    assert found.choice is None
    assert set(found.tensors) == set(RAW)
    assert torch.equal(found.tensors["fc.weight"], RAW["fc.weight"])


def test_what_was_left_out_is_said() -> None:
    assert "epoch" in find_weights({**RAW, "epoch": 3}, None).notes[0]


@pytest.mark.parametrize("key", ["ema", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "params_ema"])
def test_ema_beside_raw_asks_which(key: str) -> None:
    content = {"model": RAW, key: EMA}
    message = refusal(content)
    assert "'model'" in message
    assert f"'{key}'" in message
    assert "--weights ema or --weights raw" in message
    assert find_weights(content, "raw").tensors["fc.weight"].sum() == 6
    chosen = find_weights(content, "ema")
    assert chosen.tensors["fc.weight"].sum() == 12
    assert (chosen.under, chosen.choice) == (key, "ema")


def test_a_network_and_its_average_in_one_state_dict_ask_which() -> None:
    """As a training module that holds both saves them, the average with a count of its steps."""
    average = {**prefixed(EMA, "ema.module."), "ema.steps": torch.ones(1)}
    content = {"state_dict": {**prefixed(RAW, "net."), **average}}
    message = refusal(content)
    assert "'state_dict.net'" in message
    assert "'state_dict.ema'" in message
    raw, chosen = find_weights(content, "raw"), find_weights(content, "ema")
    assert (raw.under, set(raw.tensors)) == ("state_dict.net", set(RAW))
    assert (chosen.under, set(chosen.tensors)) == ("state_dict.ema", set(prefixed(EMA, "module.")))
    assert chosen.tensors["module.fc.weight"].sum() == 12
    assert set(find_weights(content, None, whole=True).tensors) == set(content["state_dict"])


@pytest.mark.parametrize("beside", ["module.fc.weight", "ema.fc.scale"])
def test_what_is_no_average_of_the_network_stays_in_it(beside: str) -> None:
    content = {**prefixed(RAW, "net."), **prefixed(EMA, "ema."), beside: torch.ones(3)}
    assert set(find_weights(content, None).tensors) == set(content)


def test_losses_and_counts_of_operations_beside_a_bare_network_go_last() -> None:
    """As `thop` leaves them in every module, and a criterion that is a part of the network."""
    counts = {"total_ops": torch.zeros(1), "fc.total_ops": torch.zeros(1), "fc.total_params": torch.zeros(1)}
    tensors = {**RAW, "body.weight": torch.ones(1), **counts, "criterion.weight": torch.ones(2)}
    (first, whole), (last, alone) = strip_prefixes(tensors)
    assert (first, whole) == ((), tensors)
    assert set(alone) == set(unwrap(tensors, last)) == {*RAW, "body.weight"}
    assert left_out_notes(tensors, last) == (
        "tensors that only training uses were left out: total_ops, fc.total_ops, fc.total_params, criterion.weight",
    )


def test_how_far_training_came_beside_the_weights_goes_last() -> None:
    tensors = {**RAW, "step.weight": torch.ones(1), "epoch": torch.tensor(3), "best_acc1": torch.tensor(0.9)}
    *_, (last, alone) = strip_prefixes(tensors)
    assert set(alone) == {*RAW, "step.weight"}
    assert left_out_notes(tensors, last) == ("tensors that only training uses were left out: epoch, best_acc1",)


def test_ema_alone_is_used_and_said() -> None:
    assert find_weights({"model_ema": EMA}, None).choice == "ema"


def test_a_choice_that_is_not_there_is_refused() -> None:
    assert "has no EMA weights" in refusal({"model": RAW}, "ema")
    assert "only EMA weights" in refusal({"model_ema": EMA}, "raw")


def test_torchvision_model_ema_loses_its_counter() -> None:
    averaged = {"n_averaged": torch.tensor(40), **prefixed(EMA, "module.")}
    found = find_weights({"model": RAW, "model_ema": averaged}, "ema")
    assert set(found.tensors) == {"module.fc.weight", "module.fc.bias"}
    assert "average of 40 models" in found.notes[0]


def test_several_models_in_one_file_are_refused() -> None:
    message = refusal({"generator": RAW, "discriminator": EMA})
    assert "'generator', 'discriminator'" in message


def test_no_tensors_at_all() -> None:
    assert "no tensors" in refusal({"epoch": 3, "loss": 0.1})
    assert "it holds nothing" in refusal({})
    assert "no tensors" in refusal({"optimizer": ADAM})


@pytest.mark.parametrize(
    "wrapped",
    [("module.",), ("_orig_mod.",), ("model.",), ("module.", "_orig_mod."), ("model.", "module."), ("module.",) * 2],
    ids="".join,
)
def test_wrapper_prefixes_are_removed_and_reported(wrapped: tuple[str, ...]) -> None:
    *_, (removed, tensors) = strip_prefixes(prefixed(RAW, "".join(wrapped)))
    assert removed == wrapped
    assert set(tensors) == set(RAW)


def test_a_prefix_that_only_some_names_carry_stays() -> None:
    mixed: dict[str, Tensor] = {"model.fc.weight": torch.ones(1), "head.bias": torch.ones(1)}
    assert list(strip_prefixes(mixed)) == [((), mixed)]


def test_counts_beside_loose_weights_are_no_network() -> None:
    state = {"step": torch.tensor(3), "tokens": torch.tensor(9.0)}
    content = {"body.weight": torch.ones(2, 2), "train_state": state, "dataloader": {"rng": torch.zeros(9).byte()}}
    found = find_weights(content, None)
    assert (found.under, set(found.tensors)) == (None, {"body.weight"})


def test_the_first_broken_tensor_is_named_and_counted() -> None:
    broken = {
        "a": torch.ones(3),
        "b": torch.tensor([1.0, float("nan"), float("inf"), float("nan")]),
        "c": torch.tensor(float("-inf")),
        "n": torch.tensor(3),
    }
    with pytest.raises(UsageError, match=r"'b' has 2 NaN and 1 infinite values of 4; 1 other"):
        check_finite(broken)


def test_the_check_leaves_the_number_of_threads_as_it_was() -> None:
    torch.set_num_threads(2)
    try:
        check_finite({"a": torch.ones(3)})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_opposite_infinities_do_not_cancel() -> None:
    with pytest.raises(UsageError, match="2 infinite"):
        check_finite({"w": torch.tensor([float("inf"), float("-inf")])})


def test_finite_values_whose_sum_overflows_are_finite() -> None:
    check_finite({"half": torch.full((4,), 6e4, dtype=torch.float16), "float": torch.full((4,), 3e38)})


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.ones(2, 2).to_sparse(), "sparse"),
        (torch.ones(2, device="meta"), "no data"),
    ],
    ids=["complex", "float8", "sparse", "meta"],
)
def test_tensors_that_cannot_be_weights(tensor: Tensor, word: str) -> None:
    with pytest.raises(UsageError, match=f"'fc.weight' .*{word}"):
        check_usable({"fc.weight": tensor})


def test_integers_where_floats_belong() -> None:
    with pytest.raises(UsageError, match=r"'fc\.weight' is int8"):
        check_floats({"fc.weight": torch.ones(2, dtype=torch.int8), "index": torch.ones(2).long()}, {"fc.weight"})


def test_the_dtype_is_that_of_most_elements() -> None:
    assert main_dtype({"a": torch.ones(9).half(), "b": torch.ones(3), "c": torch.ones(99).long()}) == "float16"
    with pytest.raises(UsageError, match="no tensor of the file is floating-point"):
        main_dtype({"c": torch.ones(2).long()})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", ["cat", "dog"]),
        ("class_names", ("cat", "dog")),
        ("labels", ["cat", "dog"]),
        ("idx_to_class", {1: "dog", 0: "cat"}),
        ("idx_to_class", {"1": "dog", "0": "cat"}),
        ("class_to_idx", {"dog": 1, "cat": 0}),
    ],
)
def test_class_names_are_found(key: str, value: object) -> None:
    assert training_facts({key: value, "state_dict": RAW}, {}).classes == ("cat", "dog")
    assert training_facts({"hyper_parameters": {key: value}}, {}).classes == ("cat", "dog")


@pytest.mark.parametrize("meta", [{"CLASSES": ("cat", "dog")}, {"dataset_meta": {"classes": ("cat", "dog")}}])
def test_class_names_are_found_where_openmmlab_puts_them(meta: dict[str, Any]) -> None:
    assert training_facts({"meta": meta, "state_dict": RAW}, {}).classes == ("cat", "dog")


def test_class_names_in_safetensors_metadata() -> None:
    assert training_facts(RAW, {"classes": '["cat", "dog"]'}).classes == ("cat", "dog")
    assert training_facts(RAW, {"class_to_idx": '{"dog": 1, "cat": 0}'}).classes == ("cat", "dog")
    assert training_facts(RAW, {"labels": "cat, dog"}).classes == ("cat", "dog")


@pytest.mark.parametrize("value", [3, [], {"a": 0, "b": 2}, {"a": 0, "b": 0}, [1.5], torch.ones(2)], ids=repr)
def test_what_is_no_list_of_names_is_left_alone(value: object) -> None:
    assert training_facts({"classes": value}, {}).classes is None


def test_preprocessing_is_found_where_it_is_told() -> None:
    facts = training_facts({"preprocessing": {"mean": [0.5] * 3, "std": torch.ones(3), "size": [3, 96, 96]}}, {})
    assert (facts.mean, facts.std, facts.size) == ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), 96)
    assert facts.knows_preprocessing
    assert training_facts({"size": 5, "mean": "x"}, {}).knows_preprocessing is False
