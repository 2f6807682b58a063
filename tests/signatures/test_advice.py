"""What is said of forwards and factories that people bring, and cannot be served as they are: what to change."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deploy.checkpoint.load import build_module, read_checkpoint
from deploy.convert.export import export_program
from deploy.convert.flatten import flat_module
from deploy.convert.onnx import export_onnx
from deploy.errors import DeployError, UnfinishedError, UsageError
from deploy.targets import find_target
from deploy.validate.executables import OnnxModel
from tests.signatures.models import ask

pytestmark = [
    # torch's own, while it traces
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes? self.cells._flat_weights:UserWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),
]


class Part(nn.Module):
    """One layer to save."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 8)


class RandomTable(Part):
    """A permutation that the file does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.order = torch.randperm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x[:, self.order])  # type: ignore[no-any-return]


class RandomBuffer(Part):
    """A buffer that is said not to be saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.rand(8).round(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x * self.get_buffer("kept"))  # type: ignore[no-any-return]


class SeededTable(RandomTable):
    """The same in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.order = torch.randperm(8, generator=torch.Generator().manual_seed(4))


class Hidden(Part):
    """A layer in a Python list, of whose weights the builder computes something: it cannot be built without data."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [nn.Linear(8, 8)]
        self.scale = float(self.parts[0].weight.detach().abs().max()) or 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](self.body(x))  # type: ignore[no-any-return]


class HiddenWithoutData(Part):
    """The same, which gets no memory for its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [nn.Linear(8, 8)]

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](self.body(x))  # type: ignore[no-any-return]


class HardlyRandom(Part):
    """So little dropout that two answers are mostly alike."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(nn.functional.dropout(x, 1e-7))  # type: ignore[no-any-return]


class OfADict(Part):
    """Takes a batch as data loaders give it."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.body(batch["image"])  # type: ignore[no-any-return]


class OfAList(Part):
    """Takes several tensors as one list."""

    def forward(self, views: list[Tensor]) -> Tensor:
        return self.body(torch.cat(views))  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """A table of ten rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids).mean(1)  # type: ignore[no-any-return]


class Lengths(nn.Module):
    """The last real step of each row, and a mask as long as the longest row."""

    def __init__(self, *, masked: bool = False) -> None:
        super().__init__()
        self.table, self.masked = nn.Embedding(10, 4), masked

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        x: Tensor = self.table(ids)
        if self.masked:
            return x * (torch.arange(lengths.max()) < lengths[:, None]).unsqueeze(-1)  # type: ignore[call-overload, no-any-return]
        return x[torch.arange(x.shape[0]), lengths - 1]


class LongestRow(Lengths):
    """The mask."""

    def __init__(self) -> None:
        super().__init__(masked=True)


class Scripted(Part):
    """A part that is a script."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.body = torch.jit.script(self.body)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


class Squeezes(Part):
    """Drops the batch where it is one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)[:, :1].squeeze()  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """States whose batch is their second axis."""

    def __init__(self, *, first: bool = True) -> None:
        super().__init__()
        self.cells = nn.LSTM(8, 4, batch_first=first)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self.cells(x)  # type: ignore[no-any-return]


class Steps(Recurrent):
    """The outputs alone."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.cells(x)[0]  # type: ignore[no-any-return]


class BatchAsSteps(Steps):
    """Steps first, which nobody meant."""

    def __init__(self) -> None:
        super().__init__(first=False)


class FewRows(Part):
    """Another way above three rows."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y * 2 if x.shape[0] > 3 else y


class Cached(Part):
    """A table per size, made when it is first met."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        table = self.tables.setdefault(x.shape[0], torch.ones(8))
        return self.body(x * table)  # type: ignore[no-any-return]


class TwoDtypes(nn.Module):
    """One layer in half precision and one that is not, and nothing that converts between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body = nn.Linear(8, 8).half(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.first(x))  # type: ignore[no-any-return]


class Pooled(nn.Module):
    """Pools an image of any size to three by two."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 2, 3)

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(self.body(image), (3, 2)).flatten(1)


def refused(module: nn.Module, folder: Path, inputs: tuple[str, ...], **words: tuple[str, ...]) -> DeployError:
    with pytest.raises(DeployError) as caught:
        export_program(read_checkpoint(ask(module, folder / "m.pt", inputs, **words)), max_batch=4, folder=folder)
    return caught.value


@pytest.mark.parametrize(
    ("module", "named"),
    [(RandomTable(), "order is not in"), (RandomBuffer(), "kept is not in"), (Hidden(), r"parts\[0\]\.weight, .*bias")],
    ids=["an attribute", "a buffer", "a part in a list"],
)
def test_what_a_factory_draws_at_random_is_not_taken_for_trained(module: nn.Module, named: str, tmp_path: Path) -> None:
    error = refused(module, tmp_path, ("8",))
    assert isinstance(error, UsageError), str(error)
    assert "the factory gives another network in each call" in error.found
    assert re.search(named, error.found), str(error)
    assert "register_buffer" in error.fix


def test_a_factory_with_a_seed_of_its_own_is_taken(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(ask(SeededTable(), tmp_path / "m.pt", ("8",)))
    assert export_program(checkpoint, max_batch=2, folder=tmp_path).path.exists()


OF_LENGTHS = {"values": ("ids=0..9", "lengths=1..6"), "dynamic": ("ids:1=1..6",)}
AT_THE_LEAST = (
    r"\[2, 1\], \[2\]: index 5 is out of bounds[\s\S]*lengths\.clamp\(max=x\.shape\[1\]\); or end --values lengths"
)


@pytest.mark.parametrize(
    ("module", "inputs", "words", "said"),
    [
        (Lengths(), ("int64:6", "int64:scalar"), OF_LENGTHS, AT_THE_LEAST),
        (LongestRow(), ("int64:6", "int64:scalar"), OF_LENGTHS, r"torch\.arange\(x\.shape\[1\]"),
        (Scripted(), ("8",), {}, r"without torch\.jit"),
    ],
    ids=["lengths beyond the least size", "a mask as long as the longest row", "a script"],
)
def test_the_way_out_of_what_batches_in_training_had_is_said(
    module: nn.Module, inputs: tuple[str, ...], words: dict[str, tuple[str, ...]], said: str, tmp_path: Path
) -> None:
    assert re.search(said, str(refused(module, tmp_path, inputs, **words)))


def test_lengths_within_the_least_size_are_taken(tmp_path: Path) -> None:
    words = {"values": ("ids=0..9", "lengths=1..3"), "dynamic": ("ids:1=3..6",)}
    checkpoint = read_checkpoint(ask(Lengths(), tmp_path / "m.pt", ("int64:6", "int64:scalar"), **words))
    assert export_program(checkpoint, max_batch=4, folder=tmp_path).spec.outputs[0].shape == ("batch", 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "inputs", "words", "said"),
    [
        (HardlyRandom(), ("8",), {}, r"dropout\.default is random"),
        (HiddenWithoutData(), ("8",), {}, r"device meta[\s\S]*nn\.ModuleList"),
        (OfADict(), ("8",), {}, r"not one dict[\s\S]*self\.model\(\{'image': image"),
        (OfAList(), ("8",), {}, r"not one list[\s\S]*self\.model\(\[left, right"),
        (Tokens(), ("6",), {}, r"--input-shape NAME=int64:SIZES"),
        (Tokens(), ("int64:6",), {"values": ("ids=0..10",)}, r"index out of range[\s\S]*--values NAME=0\.\.LAST"),
        (Tokens(), ("string:6",), {}, r"no tensor of dtype 'string'"),
        (Squeezes(), ("8",), {}, r"\[\] for one row and \[2\] for 2[\s\S]*squeeze\(-1\)"),
        (Recurrent(), ("5,8",), {}, r"\[1, 'batch', 4\][\s\S]*\.transpose\(0, 1\)"),
        (Steps(), ("5,8",), {"dynamic": ("x:1=1..20",)}, r"sequence a constant[\s\S]*for one number of steps"),
        (BatchAsSteps(), ("5,8",), {}, r"batch dimension a constant[\s\S]*batch_first=True"),
        (FewRows(), ("8",), {}, r"every batch up to --max-batch: batch is at most 3"),
        (Pooled(), ("1,9,9",), {"dynamic": ("image:2,3=6..20",)}, r"to 3 x 2 \(in .*forward: .*which neither format"),
        (Pooled(), ("1,2,2",), {}, r"larger sizes, those that training had: --input-shape"),
        (TwoDtypes(), ("8",), {}, r"weights of one dtype[\s\S]*tensor\.float\(\)"),
        (Cached(), ("8",), {}, r"unhashable[\s\S]*make that table once in __init__"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_the_way_out_is_said(
    module: nn.Module, inputs: tuple[str, ...], words: dict[str, tuple[str, ...]], said: str, tmp_path: Path
) -> None:
    error = refused(module, tmp_path, inputs, **words)
    assert re.search(said, str(error)), str(error)


class Forgetful(Part):
    """A `train` of its own, as those that freeze a part have it, which returns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)
        self.norm.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.body(x))  # type: ignore[no-any-return]


class Stubborn(Forgetful):
    """One that changes no mode at all."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        return None


@pytest.mark.parametrize("module", [Forgetful(), Stubborn()], ids=["forgetful", "stubborn"])
def test_a_train_of_the_user_s_own_leaves_a_module_for_inference(module: nn.Module, tmp_path: Path) -> None:
    built = build_module(read_checkpoint(ask(module, tmp_path / "m.pt", ("8",))))
    assert not any(part.training for part in built.modules())
    assert not any(parameter.requires_grad for parameter in built.parameters())


class Switched(Part):
    """A switch between the two tensors that it takes."""

    def forward(self, x: Tensor, double: bool = False, y: Tensor | None = None) -> Tensor:
        found: Tensor = self.body(x) * (2 if double else 1)
        return found if y is None else found + y


def test_a_switch_is_no_input(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(ask(Switched(), tmp_path / "m.pt", ("8", "8")))
    assert [tensor.name for tensor in checkpoint.inputs] == ["x", "y"]


def test_ids_whose_range_nobody_gave_are_told(tmp_path: Path) -> None:
    asked = [ask(Tokens(), tmp_path / "m.pt", ("int64:6",), values=values) for values in ((), ("ids=0..9",))]
    said = ["--values ids=0..LAST" in "\n".join(read_checkpoint(request).notes) for request in asked]
    assert said == [True, False]


class Hooked(Part):
    """Hooks of its own round its forward, which is given a tensor and gives one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_forward_pre_hook(lambda _, arguments: (arguments[0] * 3,))
        self.register_forward_hook(lambda _, arguments, output: output.softmax(1) + arguments[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


class ToBfloat16(Part):
    """An output of a dtype that clients do not have."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).bfloat16()  # type: ignore[no-any-return]


class OneHead(Part):
    """Attention without an axis of heads."""

    def forward(self, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        attend, y = nn.functional.scaled_dot_product_attention, self.body(x)
        return attend(y, x, x, attn_mask=kept), attend(y, x, x, is_causal=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "inputs"),
    [(Hooked(), ("8",)), (ToBfloat16(), ("8",)), (OneHead(), ("x=5,8", "kept=bool:5,5"))],
    ids=["hooks", "bfloat16 out", "attention of one head"],
)
def test_onnx_computes_what_the_module_itself_does(module: nn.Module, inputs: tuple[str, ...], tmp_path: Path) -> None:
    checkpoint = read_checkpoint(ask(module, tmp_path / "m.pt", inputs))
    program = export_program(checkpoint, max_batch=4, folder=tmp_path)
    assert all(tensor.dtype == "float32" for tensor in program.spec.outputs)
    found = OnnxModel(export_onnx(program, target=find_target("local-cpu"), folder=tmp_path).path, threads=1)
    for rows in (1, 3):
        given = [torch.randn(rows, 5, 8), torch.rand(rows, 5, 5) > 0.3] if len(inputs) > 1 else [torch.randn(rows, 8)]
        if len(inputs) > 1:
            given[1] |= torch.eye(5, dtype=torch.bool)
        own = module(*given)
        wanted = [one.float() for one in (own if isinstance(own, tuple) else [own])]
        for one, other in zip(found.run([tensor.numpy() for tensor in given]), wanted, strict=True):
            torch.testing.assert_close(torch.from_numpy(one), other.detach(), rtol=2e-3, atol=1e-5)
        for one, other in zip(flat_module(checkpoint)(*given), wanted, strict=True):
            torch.testing.assert_close(one.float(), other.detach())


class Projected(nn.Module):
    """An LSTM with a narrower output."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(8, 6, proj_size=4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x)[0]  # type: ignore[no-any-return]


class Doubled(nn.Module):
    """Computes in float64, of which ONNX Runtime lacks kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 2, 3)

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.hardswish(nn.functional.conv2d(image.double(), self.body.weight.double())).mean((2, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "inputs", "said"),
    [
        (Projected(), ("5,8",), r"proj_size[\s\S]*--formats aoti"),
        (Doubled(), ("1,9,9",), r"no float64 kernel on a CPU[\s\S]*--formats aoti, or compute in float32"),
    ],
    ids=["projection", "float64"],
)
def test_what_onnx_cannot_do_is_said_before_any_proof(
    module: nn.Module, inputs: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(ask(module, tmp_path / "m.pt", inputs))
    program = export_program(checkpoint, max_batch=4, folder=tmp_path)
    with pytest.raises(UnfinishedError) as caught:
        export_onnx(program, target=find_target("local-cpu"), folder=tmp_path)
    assert re.search(said, str(caught.value)), str(caught.value)


def packed() -> nn.Module:
    """A network that torch quantizes eagerly."""
    found: nn.Module = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(8, 8)), {nn.Linear}, dtype=torch.qint8
    )
    return found


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_factory_that_gives_a_quantized_module_is_refused(tmp_path: Path) -> None:
    request = ask(Part(), tmp_path / "m.pt", ("8",))
    with pytest.raises(UsageError, match=r"packed integers in[\s\S]*--precision int8"):
        read_checkpoint(type(request)(path=request.path, inputs=request.inputs, factory=f"{__name__}:packed"))
