"""LoRA adapters on transformers folders, from PEFT's own files to served answers."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.checkpoint.load import build_module, read_checkpoint
from deploy.checkpoint.model import CheckpointRequest
from deploy.checkpoint.pretrained import import_transformers
from deploy.ensemble.tokens import read_tokenizer
from deploy.errors import ExitCode, UsageError
from deploy.package import package
from deploy.repository.manifest import verify_files
from deploy.request import PackageRequest, Resources
from deploy.serve.engines import Engine
from deploy.targets import find_target
from tests.models import IMAGE
from tests.packaging import lively
from tests.pretrained import LONGEST, make_tokenizer, save_folder
from tests.test_pretrained import TEXTS, ask, tokens

CLASSES = 4


def trained_adapter(folder: Path, network: str, *, base: str = "Model", **options: Any) -> Any:
    """An adapter as PEFT saves it on the base in `folder`/base, its matrices and head away from where they begin."""
    import_transformers()
    peft = pytest.importorskip("peft")
    save_folder(folder / "base", network + base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT uses what transformers calls deprecated
        classifier = getattr(import_transformers(), f"{network}ForSequenceClassification")
        model = classifier.from_pretrained(folder / "base", num_labels=CLASSES)
        config = peft.LoraConfig(
            task_type="SEQ_CLS", r=2, lora_alpha=6, target_modules=["query", "value", "q_lin", "v_lin"], **options
        )
        torch.manual_seed(1)
        adapted = peft.get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.normal_(std=0.5)
        adapted.eval().save_pretrained(folder / "adapter")
    return adapted


@pytest.mark.parametrize(("network", "base"), [("Bert", "Model"), ("Roberta", "ForMaskedLM"), ("DistilBert", "Model")])
def test_it_computes_what_peft_does_though_the_base_has_another_head(network: str, base: str, tmp_path: Path) -> None:
    adapted = trained_adapter(tmp_path, network, base=base)
    checkpoint = read_checkpoint(CheckpointRequest(path=tmp_path / "adapter", base=tmp_path / "base"))
    assert checkpoint.architecture == f"transformers/{network}ForSequenceClassification"
    assert (checkpoint.num_classes, checkpoint.classes) == (CLASSES, None)
    assert any("merged into base" in note for note in checkpoint.notes)
    given = make_tokenizer()(list(TEXTS), padding=True, return_tensors="pt")
    inputs = {tensor.name: given[tensor.name] for tensor in checkpoint.inputs}
    with torch.no_grad():
        expected, found = adapted(**inputs).logits, build_module(checkpoint)(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert expected.std(dim=0).min() > 0.01


@pytest.mark.parametrize(
    ("network", "base", "lora"),
    [
        # Tied weights of which one is changed, and a layer stored the other way round beside one that is not.
        ("DistilBertForMaskedLM", {}, {"target_modules": ["word_embeddings"]}),
        ("DistilBertForMaskedLM", {}, {"target_modules": ["q_lin"], "modules_to_save": ["word_embeddings"]}),
        ("GPT2ForTokenClassification", {"pad_token_id": 0}, {"target_modules": ["attn.c_proj", "classifier"]}),
        # DoRA: a length for each output, of an embedding for each column, of layers stored either way round.
        (
            "GPT2ForTokenClassification",
            {"pad_token_id": 0},
            {"target_modules": ["wte", "attn.c_proj", "classifier"], "use_dora": True, "use_rslora": True},
        ),
        # The base's own head beside the one that replaces it; attention's out_proj, which is no head.
        ("BertForSequenceClassification", {}, {"task_type": "SEQ_CLS", "target_modules": ["query"], "bias": "all"}),
        (
            "OPTModel",
            {"ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
            {"task_type": "FEATURE_EXTRACTION", "target_modules": ["q_proj"], "modules_to_save": ["out_proj"]},
        ),
    ],
)
def test_each_part_is_merged_as_peft_computes_it(
    network: str, base: dict[str, Any], lora: dict[str, Any], tmp_path: Path
) -> None:
    import_transformers()
    peft = pytest.importorskip("peft")
    module = save_folder(tmp_path / "base", network, **base)
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT sets fan_in_fan_out itself, and says so
        adapted = peft.get_peft_model(module, peft.LoraConfig(r=2, lora_alpha=6, **lora)).eval()
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        adapted.save_pretrained(tmp_path / "adapter")
    checkpoint = read_checkpoint(CheckpointRequest(path=tmp_path / "adapter", base=tmp_path / "base"))
    given = make_tokenizer()(list(TEXTS), padding=True, return_tensors="pt")
    inputs = {tensor.name: given[tensor.name] for tensor in checkpoint.inputs}
    with torch.no_grad():
        expected, found = adapted(**inputs)[0], build_module(checkpoint)(**inputs)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_dora_gives_each_output_of_a_convolution_the_length_that_peft_does(tmp_path: Path) -> None:
    import_transformers()
    peft = pytest.importorskip("peft")
    torch.save(lively(0).state_dict(), tmp_path / "base.pt")
    adapted = peft.get_peft_model(lively(0), peft.LoraConfig(r=2, target_modules=["features.3"], use_dora=True))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    adapted.save_pretrained(tmp_path / "adapter")
    request = CheckpointRequest(
        path=tmp_path / "adapter",
        base=tmp_path / "base.pt",
        factory="tests.models:ConvNet",
        input_shapes=(IMAGE,),
    )
    found = build_module(read_checkpoint(request)).state_dict()
    wanted = adapted.merge_and_unload().state_dict()
    assert all((found[name] - wanted[name]).abs().max() < 1e-6 for name in wanted)
    assert (found["features.3.weight"] - lively(0).state_dict()["features.3.weight"]).abs().max() > 0.01


def test_a_folder_of_several_adapters_names_them(tmp_path: Path) -> None:
    (tmp_path / "runs" / "second").mkdir(parents=True)
    (tmp_path / "runs" / "second" / "adapter_config.json").write_text("{}")
    for base in (None, tmp_path / "base"):
        with pytest.raises(UsageError, match=r"folders of their own: second(.|\n)*second --base CHECKPOINT"):
            read_checkpoint(CheckpointRequest(path=tmp_path / "runs", base=base))


def test_a_base_of_another_kind_is_called_that(tmp_path: Path) -> None:
    trained_adapter(tmp_path, "Bert")
    save_folder(tmp_path / "other", "ElectraForSequenceClassification", embedding_size=16)
    with pytest.raises(UsageError, match=r"changes weights that its base has not(.|\n)*give that one as --base"):
        read_checkpoint(CheckpointRequest(path=tmp_path / "adapter", base=tmp_path / "other"))


def test_an_adapter_of_another_base_or_task_is_refused(tmp_path: Path) -> None:
    trained_adapter(tmp_path, "Bert")
    request = CheckpointRequest(path=tmp_path / "adapter", base=tmp_path / "other")
    save_folder(tmp_path / "other", "BertModel", hidden_size=16)
    with pytest.raises(UsageError, match=r"give that one as --base"):
        read_checkpoint(request)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"SEQ_CLS"', '"SEQ_2_SEQ_LM"'))
    with pytest.raises(UsageError, match=r"for the task SEQ_2_SEQ_LM(.|\n)*merge_and_unload\(\)\.save_pretrained"):
        read_checkpoint(request)


def test_what_neither_base_nor_adapter_holds_is_refused_rather_than_drawn_at_random(tmp_path: Path) -> None:
    """A masked language model has no pooler: training drew one, and PEFT keeps only what it is told to."""
    trained_adapter(tmp_path, "Bert", base="ForMaskedLM")
    with pytest.raises(UsageError, match=r"bert\.pooler\.dense\.bias(.|\n)*modules_to_save"):
        read_checkpoint(CheckpointRequest(path=tmp_path / "adapter", base=tmp_path / "base"))


@pytest.mark.slow
@pytest.mark.engine
def test_it_is_served_with_the_tokenizer_of_its_base(engine: Engine, tmp_path: Path) -> None:
    adapted = trained_adapter(tmp_path, "Bert")
    request = PackageRequest(
        checkpoint=CheckpointRequest(path=tmp_path / "adapter", base=tmp_path / "base"),
        repository=tmp_path / "repository",
        target=find_target("local-cpu"),
        formats=("onnx",),
        by_name=True,
        max_batch=4,
        ensemble="text",
        resources=Resources(seconds_per_cell=0.05, threads=1),
    )
    result = package(request)
    assert result.exit_code is ExitCode.OK, result.outcome.judgement.reason
    version = next(one.version for one in result.outcome.published if one.version.name == "adapter")
    assert (version.folder / "tokenizer" / "tokenizer.json").is_file()
    assert verify_files(version.folder).classes is None
    (found,) = ask(version, engine, [tokens(make_tokenizer(), TEXTS)])
    with torch.no_grad():
        expected = adapted(**make_tokenizer()(list(TEXTS), padding=True, return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_texts_become_tokens_as_the_adapter_was_trained(tmp_path: Path) -> None:
    """The adapter's own tokenizer is served where it has one; one with tokens that no embedding has is refused."""
    trained_adapter(tmp_path, "Bert")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["thunder"])
    checkpoint = read_checkpoint(CheckpointRequest(path=tmp_path / "adapter", base=tmp_path / "base"))
    assert read_tokenizer(checkpoint, LONGEST).cut
    tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UsageError, match="has 1 tokens that the network has no embedding of, such as 'thunder'"):
        read_tokenizer(checkpoint, LONGEST)
    other = make_tokenizer()
    other.model_max_length = 16
    other.save_pretrained(tmp_path / "adapter")
    assert (read_tokenizer(checkpoint, LONGEST).cut, read_tokenizer(checkpoint, 16).cut) == (False, True)


def test_a_version_keeps_the_tokenizer_that_the_adapter_was_trained_with(tmp_path: Path) -> None:
    trained_adapter(tmp_path, "Bert")
    request = CheckpointRequest(path=tmp_path / "adapter", base=tmp_path / "base")
    assert {file.parent.name for file in read_checkpoint(request).kept_files.values()} == {"base"}
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(tmp_path / "adapter")
    checkpoint = read_checkpoint(request)
    lies = {name: file.parent.name for name, file in checkpoint.kept_files.items()}
    assert lies == {"config.json": "base", "tokenizer.json": "adapter", "tokenizer_config.json": "adapter"}
    assert checkpoint.dims[0].maximum == 16
