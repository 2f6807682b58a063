"""What is said of a signature or a forward that cannot be: the user's line, the reason, and what to change."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy.checkpoint.load import read_checkpoint
from deploy.checkpoint.model import CheckpointRequest
from deploy.convert.export import export_program
from deploy.errors import DeployError, UnfinishedError, UsageError
from tests.signatures.models import LONGEST, Halves, Tagger, ask


class Layer(nn.Module):
    """Something to save."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


class TwoSteps(Layer):
    """Halves an image and doubles it again: even sizes only."""

    def forward(self, image: Tensor) -> Tensor:
        y = nn.functional.max_pool2d(image * self.scale, 2)
        return image + nn.functional.interpolate(y, scale_factor=2.0)


class Sum(Layer):
    """Two inputs of one size."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right * self.scale


class Places(Layer):
    """As many positions as were trained."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.ones(9, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.places[: x.shape[1]]


class FixedView(Layer):
    """A view of the batch it was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).view(2, -1)


class Asks(Layer):
    """Two decisions of Python's on values."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = x * self.scale
        if x.mean() > 3:
            x = x - 1
        return x


def test_every_line_that_depends_on_the_data_is_named_at_once(tmp_path: Path) -> None:
    error = failure(Asks(), tmp_path, ("4",))
    first, second = re.findall(r"test_explained\.py:\d+, forward: (if x\S+ > \d)", str(error))
    assert (first, second) == ("if x.sum() > 0", "if x.mean() > 3")
    assert "torch.where" in error.fix


class OfNumpy(Layer):
    """A part that another library computes."""

    def forward(self, x: Tensor) -> Tensor:
        order = np.argsort((x * self.scale).numpy(), axis=1)
        return x.gather(1, torch.from_numpy(order))


class Checked(Layer):
    """A check of values that training found useful."""

    def forward(self, x: Tensor) -> Tensor:
        assert torch.isfinite(x).all(), "not finite"
        return x * self.scale


class Spectrum(Layer):
    """Complex numbers out."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.fft.rfft(x * self.scale)
        return found


class Nothing(Layer):
    """A part of its output that a switch of training left without elements."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": x * self.scale, "aux": x[:, :0]}


class Selects(Layer):
    """Only the rows whose values say so."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x[:, 0] > 0] * self.scale


class OfTheBatch(Layer):
    """Normalises by the batch at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x * self.scale)  # type: ignore[no-any-return]


def test_a_forward_that_fails_on_a_lone_row_is_told_where(tmp_path: Path) -> None:
    error = failure(OfTheBatch(), tmp_path, ("8",))
    assert re.search(r"shape \[1, 8\]: Expected more than 1 value.*forward: return self\.norm", error.found), str(error)


class Remembers(Layer):
    """A running mean that it goes on with when it is served."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.5).add_(x.mean(0) * self.scale)
        return x - self.mean


class Overwrites(Layer):
    """Normalises its input in place, which two calls show; or cuts it off in place, which they do not."""

    def __init__(self, *, twice_the_same: bool) -> None:
        super().__init__()
        self.twice_the_same = twice_the_same

    def forward(self, x: Tensor) -> Tensor:
        return (x.clamp_(0, 1) if self.twice_the_same else x.sub_(0.5)) * self.scale


class Drops(Layer):
    """Dropout that nobody turned off, beside one that eval mode does."""

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(x, 0.5, training=self.training)
        return nn.functional.dropout(x * self.scale, 0.5)


@pytest.mark.parametrize(
    ("module", "found", "fix"),
    [
        (OfNumpy(), r"numpy\(\) is not supported(.|\n)*forward: order = np\.argsort", "with torch's operators"),
        (Checked(), r"forward: assert torch\.isfinite\(x\)\.all\(\)", "leave that check out"),
        (Spectrum(), "output 'output' is complex64", "view_as_real"),
        (Nothing(), r"output 'aux' has the shape \['batch', 0\], which holds nothing", "leave it out"),
        (Selects(), "output 'output' has a size that depends on the values", "torch.where"),
    ],
    ids=["NumPy", "an assertion", "complex numbers", "no elements", "rows by their values"],
)
def test_what_no_graph_holds_is_told_from_control_flow(module: nn.Module, found: str, fix: str, tmp_path: Path) -> None:
    error = failure(module, tmp_path, ("8",))
    assert re.search(found, error.found), str(error)
    assert fix in error.fix


@pytest.mark.parametrize(
    ("module", "found", "fix"),
    [
        (Remembers(), "differently in each call: it changes its own mean", "if self.training"),
        (Drops(), r"aten\.dropout\.default is random \(in .*forward: .*x \* self.scale, 0\.5\)", "training="),
    ],
    ids=["a state", "randomness"],
)
def test_answers_that_change_from_call_to_call_are_refused(
    module: nn.Module, found: str, fix: str, tmp_path: Path
) -> None:
    error = failure(module, tmp_path, ("8",))
    assert isinstance(error, UsageError)
    assert re.search(found, error.found), str(error)
    assert fix in error.fix


@pytest.mark.parametrize("twice_the_same", [False, True])
def test_a_forward_that_writes_into_its_input_is_refused(twice_the_same: bool, tmp_path: Path) -> None:
    module = Overwrites(twice_the_same=twice_the_same)
    torch.save(module.state_dict(), tmp_path / "m.pt")
    factory = f"{__name__}:{'cutting' if twice_the_same else 'normalising'}"
    request = CheckpointRequest(path=tmp_path / "m.pt", factory=factory, input_shapes=((8,),))
    with pytest.raises(UsageError, match=r"changes its input .* in place") as error:
        export_program(read_checkpoint(request), max_batch=4, folder=tmp_path)
    assert "x.clone()" in error.value.fix


def cutting() -> nn.Module:
    return Overwrites(twice_the_same=True)


def normalising() -> nn.Module:
    return Overwrites(twice_the_same=False)


def failure(module: nn.Module, path: Path, inputs: tuple[str, ...], **words: tuple[str, ...]) -> DeployError:
    with pytest.raises(DeployError) as caught:
        export_program(read_checkpoint(ask(module, path / "m.pt", inputs, **words)), max_batch=4, folder=path)
    assert not (path / "program.pt2").exists()
    return caught.value


@pytest.mark.parametrize(
    ("module", "inputs", "dynamic", "words"),
    [
        (TwoSteps(), ("1,12,16",), ("image:2,3=4..32",), "(height|width) is a multiple of 2"),
        (Sum(), ("7", "7"), ("left:1", "right:1@other"), "of one size only(.|\\n)*NAME:AXIS@"),
        (Places(), ("7,4",), ("x:1=1..32",), "sequence is (at least 2 and )?at most 9"),
        (FixedView(), ("4",), (), r"batch dimension a constant by torch's aten\.\S+ \(in .*, forward: .*view\(2, -1\)"),
    ],
    ids=["multiple", "equal", "bounds", "operator"],
)
def test_sizes_that_a_forward_does_not_take_are_named(
    module: nn.Module, inputs: tuple[str, ...], dynamic: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    error = failure(module, tmp_path, inputs, dynamic=dynamic)
    assert isinstance(error, UnfinishedError)
    assert re.search(words, str(error)), str(error)
    assert "transformers" not in str(error)  # a factory has no input_ids to be given one length


@pytest.mark.parametrize(
    ("module", "inputs", "words", "said"),
    [
        (Tagger(), ("input_ids=int64:4",), {}, r"takes \(input_ids, attention_mask.*\n.*\n.*attention_mask=SHAPE"),
        (Halves(), ("y=6",), {}, "no parameter 'y'"),
        (Halves(), ("x=6", "x=6"), {}, "'x', named twice"),
        (Halves(), ("x=int3:6",), {}, "no tensor of dtype 'int3'"),
        (Halves(), ("6",), {"dynamic": ("y:1",)}, "no input 'y'"),
        (Halves(), ("6",), {"dynamic": ("x:0",)}, "the batch, which --max-batch makes dynamic"),
        (Halves(), ("6",), {"dynamic": ("x:2",)}, "no axis"),
        (Halves(), ("6",), {"dynamic": ("x:1=9..3",)}, "9..3 are no bounds"),
        (Halves(), ("6",), {"values": ("x=0..3",)}, "float32: it has no range"),
        (Sum(), ("7", "7"), {"dynamic": ("left:1=1..7", "right:1=1..9")}, "sequence is 1..9 here and 1..7"),
    ],
)
def test_a_signature_that_cannot_be_is_refused(
    module: nn.Module, inputs: tuple[str, ...], words: dict[str, tuple[str, ...]], said: str, tmp_path: Path
) -> None:
    error = failure(module, tmp_path, inputs, **words)
    assert isinstance(error, UsageError)
    assert re.search(said, str(error)), str(error)


class Timed(nn.Module):
    """Takes one number per row beside it: a step of diffusion, say."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.body(x) * t[:, None]  # type: ignore[no-any-return]


def test_one_number_per_row_is_an_input(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(ask(Timed(), tmp_path / "m.pt", ("6", "t=int64:scalar"), values=("t=0..999",)))
    program = export_program(checkpoint, max_batch=4, folder=tmp_path)
    assert [(tensor.dtype, tensor.shape) for tensor in program.spec.inputs] == [
        ("float32", ("batch", 6)),
        ("int64", ("batch",)),
    ]


def test_default_bounds_reach_up_to_the_size_that_was_given(tmp_path: Path) -> None:
    request = ask(Tagger(), tmp_path / "m.pt", (f"int64:{LONGEST}", "attention_mask=int64:12", "token_type_ids=none"),
                  dynamic=("input_ids:1", "attention_mask:1"))  # fmt: skip
    found = read_checkpoint(request)
    assert [(dim.name, dim.minimum, dim.maximum) for dim in found.dims] == [("sequence", 6, LONGEST)]
    assert found.absent == ("token_type_ids",)


class OfWholeRows(Layer):
    """Looks at the mask's values, and fails where it is not all ones: as a Nyströmformer of transformers does."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = x * self.scale
        return y if bool(mask.all()) else y + mask[:, :3]


def test_one_that_fails_on_padding_is_told_so_and_not_of_its_export(tmp_path: Path) -> None:
    error = failure(OfWholeRows(), tmp_path, ("x=8", "mask=int64:8"), values=("mask=mask",))
    assert re.search(r"fails on rows that are filled up.*size of tensor a.*forward: return y if", error.found), error
