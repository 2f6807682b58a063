"""A module built without memory and assigned to is the module built the ordinary way and loaded."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deploy.checkpoint.build import assign_weights, build_architecture, left_on_meta, parameters_on_meta
from deploy.checkpoint.load import build_module, read_checkpoint
from deploy.checkpoint.model import CheckpointRequest
from deploy.checkpoint.servable import servable
from deploy.checkpoint.zoo import load_zoo
from deploy.errors import UsageError
from tests.checkpoint.checkpoints import saved, seeded, small_state

FEW = ["resnet18", "regnet_y_400mf", "swin_t", "swin_v2_t", "vit_b_32", "mnasnet0_5", "maxvit_t", "densenet121"]
WITH_AUXILIARY = ["googlenet", "inception_v3"]
# The others keep auxiliary heads or an epsilon that building them the ordinary way does not give.
SAME = [
    name
    for name, entry in load_zoo().items()
    if entry.kind != "two-stage detection" and "aux_logits" not in entry.options and "norm_epsilon" not in entry.options
]


def all_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those outside the state_dict too."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def check_same(built: nn.Module, ordinary: nn.Module) -> None:
    """Same structure with the same settings (`repr` shows epsilons, strides, dropout), and the same values."""
    assert repr(built) == repr(ordinary)
    assert not built.training
    found, wanted = all_tensors(built), all_tensors(ordinary)
    assert list(found) == list(wanted)
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    assert not any(tensor.requires_grad for tensor in found.values())


@pytest.mark.parametrize("builder", FEW)
def test_the_same_module_as_loading_the_ordinary_way(builder: str, tmp_path: Path) -> None:
    ordinary = seeded(builder, num_classes=5)
    check_same(build_module(read_checkpoint(saved(tmp_path / "weights.pt", ordinary.state_dict()))), ordinary)


@pytest.mark.parametrize("builder", ["regnet_y_400mf", "mnasnet0_5"])
def test_the_same_outputs_and_nearly_so_in_float64(builder: str, tmp_path: Path) -> None:
    ordinary = seeded(builder, num_classes=5)
    checkpoint = read_checkpoint(saved(tmp_path / "weights.pt", ordinary.state_dict()))
    image = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = ordinary(image)
        assert torch.equal(build_module(checkpoint)(image), expected)
        precise = build_module(checkpoint, dtype="float64")(image.double())
    assert precise.dtype == torch.float64
    assert torch.allclose(precise.float(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("builder", WITH_AUXILIARY)
@pytest.mark.parametrize(("transform", "auxiliary"), [(False, True), (True, False)])
def test_auxiliary_heads_change_nothing(builder: str, transform: bool, auxiliary: bool, tmp_path: Path) -> None:
    options = {"init_weights": False, "aux_logits": auxiliary, "transform_input": transform}
    ordinary = seeded(builder, num_classes=5, **options)
    request = saved(tmp_path / "weights.pt", ordinary.state_dict())
    form = f"{builder}+transform_input" if transform else builder
    checkpoint = read_checkpoint(CheckpointRequest(path=request.path, arch=form))
    assert any("auxiliary" in note for note in checkpoint.notes) is auxiliary
    image = torch.rand(1, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(build_module(checkpoint)(image), ordinary(image))


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_every_builder_is_the_same_as_loading_the_ordinary_way(name: str, tmp_path: Path) -> None:
    entry = load_zoo()[name]
    classes = {"num_classes": 5} if entry.head else {}
    ordinary = servable(seeded(entry.builder, **{**entry.options, **classes}))
    request = replace(saved(tmp_path / "weights.pt", ordinary.state_dict()), arch=name)
    check_same(build_module(read_checkpoint(request)), ordinary)
    request.path.unlink()  # the largest is 2.6 GB, and pytest keeps its folders


def test_other_channels_classes_and_image_size(tmp_path: Path) -> None:
    ordinary = seeded("vit_b_32", num_classes=2, image_size=96)
    projection = nn.Conv2d(1, 768, kernel_size=32, stride=32)
    ordinary.conv_proj = projection
    checkpoint = read_checkpoint(saved(tmp_path / "grey.pt", ordinary.state_dict()))
    assert checkpoint.options == {"num_classes": 2, "in_channels": 1, "image_size": 96}
    image = torch.rand(2, 1, 96, 96)
    with torch.inference_mode():
        assert torch.equal(build_module(checkpoint)(image), ordinary(image))


def test_maxvit_is_built_for_the_size_that_was_asked(tmp_path: Path) -> None:
    request = saved(tmp_path / "weights.pt", seeded("maxvit_t", num_classes=2).state_dict())
    checkpoint = read_checkpoint(CheckpointRequest(path=request.path, input_shapes=((3, 448, 448),)))
    # On the meta device a forward checks shapes alone; a module built for 224 fails at this size.
    assert build_module(checkpoint).to("meta")(torch.rand(1, 3, 448, 448, device="meta")).shape == (1, 2)


def test_the_weights_are_the_mapped_file_itself(tmp_path: Path) -> None:
    request = saved(tmp_path / "weights.pt", small_state())
    module = build_module(read_checkpoint(request))
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(request.path) in line]
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps]
    assert all(any(low <= tensor.data_ptr() < high for low, high in ranges) for tensor in module.parameters())


def test_a_state_without_counters_is_whole(tmp_path: Path) -> None:
    state = seeded("resnet18").state_dict()
    old = {name: tensor for name, tensor in state.items() if "num_batches_tracked" not in name}
    module = build_module(read_checkpoint(saved(tmp_path / "old.pt", old)))
    assert torch.equal(module.get_parameter("fc.weight"), state["fc.weight"])


def test_a_file_that_changed_since_is_refused(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(saved(tmp_path / "weights.pt", small_state()))
    torch.save(small_state(num_classes=4), checkpoint.path)
    with pytest.raises(UsageError, match="do not fit"):
        build_module(checkpoint)


def test_half_precision_weights_stay_half(tmp_path: Path) -> None:
    halves = {name: tensor.half() for name, tensor in small_state().items()}
    checkpoint = read_checkpoint(saved(tmp_path / "half.pt", halves))
    assert (checkpoint.dtype, checkpoint.inputs[0].dtype) == ("float16", "float16")
    assert {tensor.dtype for tensor in build_module(checkpoint).parameters()} == {torch.float16}


def test_building_allocates_no_parameters_and_leaves_torch_as_it_was() -> None:
    register = nn.Module.register_parameter
    module = build_architecture(load_zoo()["regnet_y_128gf"], {"num_classes": 10})
    assert all(parameter.is_meta for parameter in module.parameters())
    assert nn.Module.register_parameter is register
    with pytest.raises(ZeroDivisionError), parameters_on_meta():
        1 / 0  # noqa: B018
    assert nn.Module.register_parameter is register


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight


def test_a_shared_parameter_may_be_saved_under_one_name_and_stays_shared() -> None:
    with parameters_on_meta():
        module = Tied()
    assign_weights(module, {"first.weight": torch.eye(4)})
    assert module.second.weight is module.first.weight
    assert torch.equal(module.second.weight, torch.eye(4))


class Derived(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        if kind == "buffer":
            self.register_buffer("copied", self.weight.detach() * 2, persistent=False)
        elif kind == "attribute":
            self.scale = self.weight.detach().sum()


@pytest.mark.parametrize(("kind", "left"), [("nothing", False), ("buffer", True), ("attribute", True)])
def test_values_made_from_parameters_are_noticed(kind: str, left: bool) -> None:
    with parameters_on_meta():
        module = Derived(kind)
    assert left_on_meta(module, filled={"weight"}) is left
