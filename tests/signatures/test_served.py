"""From the file to answers of a real tritonserver, for signatures that are not one image in and one tensor out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.checkpoint.load import read_checkpoint
from deploy.checkpoint.model import CheckpointRequest
from deploy.errors import UsageError
from deploy.evidence import ParityEvidence, ServedEvidence
from deploy.package import package
from deploy.processes import prepare
from deploy.repository.manifest import Manifest, verify_files
from deploy.repository.protobuf import parse_config
from deploy.request import PackageResult
from deploy.serve.engines import Engine
from deploy.spec import Dim, TensorSpec
from deploy.validate.store import load_baseline
from deploy.verify import verify
from tests.signatures.models import LONGEST, VOCABULARY, Halves, Masked, ask, ask_mixed, ask_tagger, to_package


@pytest.fixture(scope="module", autouse=True)
def _preloaded() -> None:
    prepare("deploy.convert.preload")


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> PackageResult:
    """The tagger, packaged and served."""
    folder = tmp_path_factory.mktemp("tagger")
    return package(to_package(ask_tagger(folder / "tagger.pt"), folder, max_batch=3))


def published(result: PackageResult) -> tuple[Manifest, Path]:
    assert result.outcome.judgement.passed, result.outcome
    folder = result.outcome.published[0].version.folder
    return verify_files(folder), folder


@pytest.mark.engine
def test_ids_masks_and_a_length_that_requests_choose_are_served(tagged: PackageResult) -> None:
    manifest, folder = published(tagged)
    inputs = {tensor.name: tensor for tensor in manifest.spec.inputs}
    assert inputs["input_ids"].values == (0, VOCABULARY - 1)
    assert inputs["attention_mask"].mask
    assert all(tensor.shape == ("batch", "sequence") for tensor in inputs.values())
    assert manifest.spec.dims == (
        Dim(name="batch", minimum=1, maximum=3), Dim(name="sequence", minimum=1, maximum=LONGEST),
    )  # fmt: skip
    served = ServedEvidence.read(folder / "evidence" / "served.json")
    assert served.judgement.passed
    assert served.executions < served.inferences
    config = parse_config((folder / "config.pbtxt").read_text())
    assert [list(entry.dims) for entry in config.input] == [[-1], [-1]]


@pytest.mark.engine
def test_nested_outputs_of_every_dtype_are_judged_at_each_length(tagged: PackageResult) -> None:
    manifest, folder = published(tagged)
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in manifest.spec.outputs] == [
        ("logits", "float32", ("batch", "sequence", 3)),
        ("pooled_0", "float32", ("batch", 8)),
        ("pooled_1_norm", "float32", ("batch",)),
        ("pooled_1_padding", "int64", ("batch",)),
        ("kept", "bool", ("batch", "sequence")),
        ("scale", "float32", ("batch", 1)),
    ]
    parity = ParityEvidence.read(folder / "evidence" / "parity.json")
    assert {output.output for output in parity.outputs} == {tensor.name for tensor in manifest.spec.outputs}
    baseline = load_baseline(folder / "evidence", manifest.spec)
    lengths = {family: rows.pool.inputs[0].shape[1] for family, rows in baseline.rows.items()}
    assert (lengths["smallest"], lengths["normal"], lengths["largest"]) == (1, 3, LONGEST)
    assert "output 'scale' is a single number: it is served as [batch, 1]" in tagged.conversion.program.notes


@pytest.mark.engine
def test_it_is_verified_again_from_its_own_evidence(tagged: PackageResult, engine: Engine) -> None:
    version = tagged.outcome.published[0].version
    again = verify(version.repository, version.name, engine=engine)
    assert again.versions[0].checks["served"].passed


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> PackageResult:
    folder = tmp_path_factory.mktemp("mixed")
    return package(to_package(ask_mixed(folder / "mixed.pt"), folder, serve_check=False))


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("make", [ask_tagger, ask_mixed], ids=["by keyword, one of them None", "of three dtypes"])
def test_aoti_takes_several_inputs_and_is_served(
    make: Callable[[Path], CheckpointRequest], engine: Engine, tmp_path: Path
) -> None:
    result = package(to_package(make(tmp_path / "net.pt"), tmp_path, formats=("aoti",), max_batch=3))
    manifest, folder = published(result)
    assert manifest.format == "aoti"
    assert manifest.verdicts.parity.passed
    served = ServedEvidence.read(folder / "evidence" / "served.json")
    assert served.judgement.passed
    assert served.executions < served.inferences
    config = parse_config((folder / "config.pbtxt").read_text())
    assert [entry.name for entry in config.input] == [f"INPUT__{index}" for index in range(len(manifest.spec.inputs))]
    assert [entry.name for entry in config.output] == [
        f"OUTPUT__{index}" for index in range(len(manifest.spec.outputs))
    ]


def test_images_of_any_size_beside_truth_values_and_integers(mixed: PackageResult) -> None:
    manifest, _ = published(mixed)
    assert manifest.spec.inputs == (
        TensorSpec(name="image", dtype="float32", shape=("batch", 2, "height", "width")),
        TensorSpec(name="night", dtype="bool", shape=("batch", 1)),
        TensorSpec(name="kind", dtype="int32", shape=("batch", 1), values=(0, 4)),
    )


def test_sizes_that_follow_from_the_inputs_are_bounded(mixed: PackageResult) -> None:
    manifest, folder = published(mixed)
    half = manifest.spec.outputs[1].shape
    assert half == ("batch", 4, "(height//2)", "(width//2)")
    bounds = {dim.name: (dim.minimum, dim.maximum) for dim in manifest.spec.dims}
    assert bounds["(height//2)"] == (2, 5)
    config = parse_config((folder / "config.pbtxt").read_text())
    assert [list(entry.dims) for entry in config.output] == [[4], [4, -1, -1], [4, -1, -1]]


# Float16 goes the way of bfloat16 but for the note, so it is slow.
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_weights_exchange_float32(dtype: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    request = ask(Halves().to(getattr(torch, dtype)), tmp_path / "half.pt", ("x=float32:6",))
    result = package(to_package(request, tmp_path, serve_check=False, max_batch=2))
    manifest, _ = published(result)
    assert manifest.checkpoint.dtype == dtype
    assert [tensor.dtype for tensor in (*manifest.spec.inputs, *manifest.spec.outputs)] == ["float32", "float32"]
    said = "computed and exchanged in float32, which holds each of their values"
    assert any(said in note for note in manifest.checkpoint.notes) == (dtype == "bfloat16")


def test_bfloat16_weights_keep_each_of_their_values(tmp_path: Path) -> None:
    from deploy.checkpoint.load import build_module

    torch.manual_seed(5)
    module = Halves().to(torch.bfloat16)
    found = build_module(read_checkpoint(ask(module, tmp_path / "half.pt", ("6",))))
    for name, tensor in found.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, module.state_dict()[name].float())


def test_a_mask_of_minus_infinity_is_no_broken_weight(tmp_path: Path) -> None:
    assert read_checkpoint(ask(Masked(), tmp_path / "m.pt", ("5,8",))).parameters
    for name, value in (("mask", "nan"), ("mask", "inf"), ("body.linear1.bias", "-inf")):
        broken = Masked()
        broken.state_dict()[name].view(-1)[0] = float(value)
        with pytest.raises(UsageError, match=f"{name!r} has"):
            read_checkpoint(ask(broken, tmp_path / "broken.pt", ("5,8",)))


@pytest.mark.slow
def test_a_mask_of_minus_infinity_is_proven(tmp_path: Path) -> None:
    torch.manual_seed(5)
    result = package(to_package(ask(Masked(), tmp_path / "m.pt", ("5,8",)), tmp_path, serve_check=False))
    published(result)


def test_samples_are_held_against_the_ranges(tmp_path: Path) -> None:
    asked = to_package(ask_tagger(tmp_path / "tagger.pt"), tmp_path, serve_check=False)
    ids, mask = np.zeros((4, 5), np.int64), np.ones((4, 5), np.int64)
    for changed, words in (
        ({"input_ids": ids + VOCABULARY}, rf"holds {VOCABULARY} in row 0(.|\n)*values in 0..{VOCABULARY - 1}"),
        ({"attention_mask": mask * [[1], [1], [0], [1]]}, "'attention_mask' is no mask in row 2"),
        ({"attention_mask": mask[:, :4]}, "sequence 5, as in the other inputs"),
        ({"input_ids": np.zeros((4, 13), np.int64)}, "with sequence in 1..12"),
    ):
        np.savez(tmp_path / "s.npz", allow_pickle=False, **{"input_ids": ids, "attention_mask": mask, **changed})
        with pytest.raises(UsageError, match=words):
            package(replace(asked, samples=tmp_path / "s.npz"))
