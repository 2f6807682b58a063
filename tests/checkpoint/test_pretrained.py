"""Folders of transformers: what is read from them, and what is refused before anything is loaded or right after."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deploy.checkpoint.load import build_module, read_checkpoint
from deploy.checkpoint.model import (
    Checkpoint,
    CheckpointRequest,
    DynamicRequest,
    PreprocessingRequest,
    ValuesRequest,
)
from deploy.checkpoint.pretrained_folder import is_pretrained_folder
from deploy.ensemble.text import plan_texts
from deploy.errors import MissingError, UsageError
from tests.pretrained import LABELS, LONGEST, WORDS, change_config, make_tokenizer, save_folder

ROOT = Path(__file__).parents[2]


def read(folder: Path, **options: Any) -> Checkpoint:
    return read_checkpoint(CheckpointRequest(path=folder, **options))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A text classifier, whole."""
    save_folder(tmp_path / "mood", "BertForSequenceClassification")
    return tmp_path / "mood"


def test_a_folder_says_its_class_inputs_labels_and_lengths(folder: Path) -> None:
    checkpoint = read(folder)
    assert (checkpoint.architecture, checkpoint.how) == ("transformers/BertForSequenceClassification", "config")
    assert checkpoint.origin == "architecture: as config.json says"
    assert {tensor.name: (tensor.values, tensor.mask) for tensor in checkpoint.inputs} == {
        "input_ids": ((0, len(WORDS) - 1), False),
        "attention_mask": (None, True),
        "token_type_ids": ((0, 1), False),
    }
    assert checkpoint.dims[0].maximum == LONGEST
    assert checkpoint.classes == LABELS
    assert checkpoint.digest == read(folder).digest


def test_the_module_is_the_one_that_was_saved(tmp_path: Path) -> None:
    saved = save_folder(tmp_path, "BertForSequenceClassification", max_shard_size="20KB", dtype=torch.bfloat16)
    checkpoint = read(tmp_path)
    module = build_module(checkpoint)
    assert checkpoint.dtype == "bfloat16"
    assert "float32, which holds each of them exactly" in " ".join(checkpoint.notes)
    # `save_pretrained` left the network in bfloat16, so these are the stored values.
    assert all(torch.equal(module.state_dict()[name], value.float()) for name, value in saved.state_dict().items())
    assert build_module(checkpoint, "float64").state_dict()["classifier.weight"].dtype == torch.float64


def test_inputs_are_those_that_the_network_takes(tmp_path: Path) -> None:
    save_folder(tmp_path / "one", "RobertaForTokenClassification", tokenizer=False, type_vocab_size=1)
    checkpoint = read(tmp_path / "one")
    assert [tensor.name for tensor in checkpoint.inputs] == ["input_ids", "attention_mask"]
    # Two of RoBERTa's 64 positions stand before the first token.
    assert checkpoint.dims[0].maximum == 62
    assert "no tokenizer lies in the folder" in " ".join(checkpoint.notes)


def test_a_long_context_is_cut_and_said(tmp_path: Path) -> None:
    save_folder(tmp_path, "BertForSequenceClassification", tokenizer=False, max_position_embeddings=2048)
    checkpoint = read(tmp_path)
    assert checkpoint.dims[0].maximum == 512
    assert any(note.endswith("could take 2048: --dynamic input_ids:1=1..2048") for note in checkpoint.notes)
    asked = DynamicRequest(input="input_ids", axes=((1, None),), bounds=(2, 2048))
    assert read(tmp_path, dynamic=(asked,)).dims[0].maximum == 2048
    fixed = read(tmp_path, dynamic=(replace(asked, bounds=(64, 64)),))
    assert ([one.shape for one in fixed.inputs], fixed.dims) == ([("batch", 64)] * 3, ())
    with pytest.raises(UsageError, match=r"--dynamic input_ids:1=1\.\.2048"):
        read(tmp_path, dynamic=(replace(asked, bounds=(1, 4096)),))


def test_an_ensemble_takes_texts_of_any_length(folder: Path) -> None:
    asked = DynamicRequest(input="input_ids", axes=((1, None),), bounds=(LONGEST, LONGEST))
    checkpoint = read(folder, dynamic=(asked,))
    assert f"texts of {LONGEST} tokens" in " ".join(checkpoint.notes)
    with pytest.raises(UsageError, match="texts of one length alone"):
        plan_texts(checkpoint, None)


def test_placeholders_for_labels_are_no_names(tmp_path: Path) -> None:
    save_folder(tmp_path, "BertForSequenceClassification", id2label={0: "LABEL_0", 1: "LABEL_1"})
    checkpoint = read(tmp_path)
    assert (checkpoint.classes, checkpoint.num_classes) == (None, 2)


def test_an_image_classifier_has_its_size_and_normalisation(tmp_path: Path) -> None:
    save_folder(tmp_path, "ViTForImageClassification", tokenizer=False)
    settings = {"image_mean": [0.5, 0.5, 0.4], "image_std": [0.2, 0.2, 0.2], "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, "resample": 3}))
    checkpoint = read(tmp_path)
    assert checkpoint.inputs[0].shape == ("batch", 3, 32, 32)
    assert (checkpoint.preprocessing.mean, checkpoint.preprocessing.interpolation) == ((0.5, 0.5, 0.4), "bicubic")
    assert checkpoint.kept == ("config.json", "preprocessor_config.json")
    with pytest.raises(UsageError, match="asks for 64 x 64, and config"):
        read(tmp_path, input_shapes=((3, 64, 64),))


def test_an_image_network_without_a_size_asks_for_one(tmp_path: Path) -> None:
    save_folder(tmp_path, "ResNetForImageClassification", tokenizer=False)
    with pytest.raises(UsageError, match=r"how large the images are(.|\n)*--input-shape 3,HEIGHT,WIDTH"):
        read(tmp_path)
    assert read(tmp_path, input_shapes=((3, 48, 40),)).inputs[0].shape == ("batch", 3, 48, 40)


def sentence_folder(folder: Path, *, last: str = "Normalize", **pooling: Any) -> Path:
    save_folder(folder, "BertModel")
    parts = [("", "models.Transformer"), ("1_Pooling", "models.Pooling"), ("2_Last", f"models.{last}")]
    (folder / "modules.json").write_text(json.dumps([{"path": path, "type": kind} for path, kind in parts]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_a_sentence_is_pooled_as_sentence_transformers_does(mode: str, tmp_path: Path) -> None:
    module: Any = build_module(read(sentence_folder(tmp_path, pooling_mode=mode)))
    # Only now: it imports transformers and so torchvision, which must be done in our way first.
    from sentence_transformers.sentence_transformer.modules import Pooling as Theirs

    ids, mask = torch.randint(4, len(WORDS), (3, 7)), torch.ones(3, 7, dtype=torch.int64)
    mask[1, 4:], mask[2, :2] = 0, 0  # padding behind, and before
    tokens = module.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
    pooled = Theirs(32, pooling_mode=mode)({"token_embeddings": tokens, "attention_mask": mask})["sentence_embedding"]
    wanted = torch.nn.functional.normalize(pooled, dim=1)
    torch.testing.assert_close(module(ids, mask)["sentence_embedding"], wanted)


def test_an_embedding_is_cut_as_sentence_transformers_does(tmp_path: Path) -> None:
    """Behind all parts, the normalising too: that is what its `truncate_dim` means."""
    whole: Any = build_module(read(sentence_folder(tmp_path, pooling_mode="mean")))
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"truncate_dim": 8}))
    checkpoint = read(tmp_path)
    assert any("cut to its first 8 elements" in note for note in checkpoint.notes)
    ids, mask = torch.randint(4, len(WORDS), (3, 7)), torch.ones(3, 7, dtype=torch.int64)
    wanted = whole(ids, mask)["sentence_embedding"][:, :8]
    assert torch.equal(build_module(checkpoint)(ids, mask)["sentence_embedding"], wanted)


def test_a_pooler_that_no_sentence_needs_may_be_absent(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path, pooling_mode_cls_token=True)
    drop(folder, "pooler.dense.weight", "pooler.dense.bias")
    assert "one embedding per text, as modules.json says: cls, then normalised" in read(folder).notes


def test_words_that_the_tokenizer_has_and_the_network_has_not_are_said(tmp_path: Path) -> None:
    save_folder(tmp_path, "BertModel")
    assert not [note for note in read(tmp_path).notes if "no embedding" in note]
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["deployctl", "torch"])
    tokenizer.save_pretrained(tmp_path)
    (note,) = (note for note in read(tmp_path).notes if "no embedding" in note)
    assert note.startswith("the tokenizer has 2 tokens that the network has no embedding for, the first 'deployctl'")
    assert f"({len(WORDS)}, where 0..{len(WORDS) - 1} have one)" in note


def test_a_chain_of_other_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a chain of Transformer, Pooling, LSTM"):
        read(sentence_folder(tmp_path / "a", last="LSTM", pooling_mode="mean"))
    with pytest.raises(UsageError, match="tokens are pooled by median"):
        read(sentence_folder(tmp_path / "b", pooling_mode="median"))
    with pytest.raises(UsageError, match="leaves out the tokens of a prompt"):
        read(sentence_folder(tmp_path / "c", pooling_mode="mean", include_prompt=False))


def dense_folder(folder: Path, **settings: Any) -> Path:
    sentence_folder(folder, last="Dense", pooling_mode="mean")
    (folder / "2_Last").mkdir()
    usual = {"in_features": 32, "out_features": 8, "bias": True, "activation_function": "torch.nn.modules.Tanh"}
    (folder / "2_Last" / "config.json").write_text(json.dumps({**usual, **settings}))
    layer = {"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8)}
    save_file(layer, folder / "2_Last" / "model.safetensors")
    return folder


def test_a_dense_layer_behind_the_pooling_is_part_of_the_module(tmp_path: Path) -> None:
    checkpoint = read(dense_folder(tmp_path))
    assert "one embedding per text, as modules.json says: mean, then dense to 8" in checkpoint.notes
    assert "2_Last/config.json" in checkpoint.kept
    module: Any = build_module(checkpoint)
    from sentence_transformers.base.modules import Dense as Theirs

    ids, mask = torch.randint(4, len(WORDS), (3, 7)), torch.ones(3, 7, dtype=torch.int64)
    pooled = module.transformer(input_ids=ids, attention_mask=mask).last_hidden_state.mean(dim=1)
    wanted = Theirs.load(str(tmp_path), subfolder="2_Last")({"sentence_embedding": pooled})["sentence_embedding"]
    torch.testing.assert_close(module(ids, mask)["sentence_embedding"], wanted)


def test_a_layer_normalisation_behind_the_pooling_is_part_of_the_module_and_dropout_is_not(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling

    save_folder(tmp_path / "pretrained", "BertModel")
    normal = LayerNorm(32)
    torch.nn.init.normal_(normal.norm.weight)
    parts = [Transformer(str(tmp_path / "pretrained")), Pooling(32), Dropout(0.5), normal]
    model = SentenceTransformer(modules=parts, device="cpu").eval()
    model.save(str(tmp_path / "texts"))
    checkpoint = read(tmp_path / "texts")

    assert "one embedding per text, as modules.json says: mean, then layer-normalised" in checkpoint.notes
    ids, mask = torch.randint(4, len(WORDS), (3, 7)), torch.ones(3, 7, dtype=torch.int64)
    wanted = model({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
    torch.testing.assert_close(build_module(checkpoint)(ids, mask)["sentence_embedding"], wanted)
    (tmp_path / "texts" / "3_LayerNorm" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="3_LayerNorm holds no model"):
        read(tmp_path / "texts")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"activation_function": "own.module.Swirl"}, "the activation Swirl"),
        ({"use_residual": True}, "a residual connection"),
        ({"module_input_name": "token_embeddings"}, "inputs or outputs sentence_embedding, token_embeddings"),
        ({"out_features": 9}, r"expected: .*\[9, 32\]"),
    ],
)
def test_a_dense_layer_that_is_something_else_is_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        read(dense_folder(tmp_path, **settings))


def test_the_class_of_a_sentence_folder_is_that_of_its_kind(tmp_path: Path) -> None:
    """The folders of many published embeddings name the class that was pretrained, without its head."""
    folder = sentence_folder(tmp_path, pooling_mode="mean")
    change_config(folder, architectures=["BertForMaskedLM"])
    assert read(folder).architecture == "transformers/BertModel"


def test_an_encoder_of_two_parts_is_taken_alone(tmp_path: Path) -> None:
    save_folder(tmp_path, "T5EncoderModel")
    change_config(tmp_path, is_encoder_decoder=True)  # as earlier releases wrote it
    assert read(tmp_path).architecture == "transformers/T5EncoderModel"


def test_what_a_cross_encoder_makes_of_its_scores_is_said(folder: Path) -> None:
    (folder / "modules.json").write_text(json.dumps([{"path": "", "type": "base.modules.transformer.Transformer"}]))
    (folder / "sentence_bert_config.json").write_text('{"transformer_task": "sequence-classification"}')
    change_config(folder, sentence_transformers={"activation_fn": "torch.nn.modules.activation.Sigmoid"})
    checkpoint = read(folder)
    assert checkpoint.architecture == "transformers/BertForSequenceClassification"
    assert "a CrossEncoder puts its scores through Sigmoid" in " ".join(checkpoint.notes)
    with pytest.raises(UsageError, match="reads two texts at once"):
        plan_texts(checkpoint, None)


def decoder(folder: Path, **options: Any) -> Path:
    save_folder(folder, "GPT2ForSequenceClassification", **options)
    return folder


def test_a_decoder_that_classifies_must_know_its_padding(tmp_path: Path) -> None:
    assert read(decoder(tmp_path / "a", pad_token_id=0)).num_classes == 3
    with pytest.raises(UsageError, match=r'has no pad_token_id(.|\n)*"pad_token_id": 0'):
        read(decoder(tmp_path / "b"))
    with pytest.raises(UsageError, match=r"has the pad_token_id 3, and the tokenizer fills up with 0"):
        read(decoder(tmp_path / "c", pad_token_id=3))


def test_what_xlnet_remembers_is_no_output(tmp_path: Path) -> None:
    save_folder(tmp_path, "XLNetForSequenceClassification")
    ids = torch.ones(2, 5, dtype=torch.int64)
    assert list(build_module(read(tmp_path))(input_ids=ids, attention_mask=ids)) == ["logits"]


def test_what_scores_mean_beside_the_largest_is_said(tmp_path: Path) -> None:
    for problem, words in (("multi_label_classification", "several labels may be right"), ("regression", "regression")):
        save_folder(tmp_path / problem, "BertForSequenceClassification", problem_type=problem)
        assert words in " ".join(read(tmp_path / problem).notes)


def test_images_are_as_large_as_their_processor_makes_them(tmp_path: Path) -> None:
    save_folder(tmp_path, "Dinov2Model", tokenizer=False, image_size=70, patch_size=14)
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}, "do_center_crop": True}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "BitImageProcessor", "do_resize": True, "resample": 3, **settings})
    )
    checkpoint = read(tmp_path)
    assert checkpoint.inputs[0].shape == ("batch", 3, 28, 28)
    assert (checkpoint.preprocessing.resize, checkpoint.preprocessing.crop) == (32, 28)
    assert read(tmp_path, input_shapes=((3, 42, 42),)).inputs[0].shape == ("batch", 3, 42, 42)


@pytest.mark.parametrize(
    ("network", "options", "words"),
    [
        ("LayoutLMForTokenClassification", {}, "reads input_ids and bbox"),
        ("ImageGPTForImageClassification", {"n_embd": 32, "n_layer": 1, "n_head": 2}, "the colours of pixels"),
        ("VideoMAEModel", {"image_size": 32, "patch_size": 8, "num_frames": 4}, r"does not take one image of \[3, 32"),
    ],
)  # fmt: skip
def test_what_reads_more_than_one_text_or_image_is_refused(
    network: str, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """Without where the words stand on a page the network would answer something, and wrongly."""
    save_folder(tmp_path, network, tokenizer=False, **options)
    with pytest.raises(UsageError, match=rf"{words}(.|\n)*--factory package.module:function"):
        read(tmp_path)


def test_the_token_types_are_those_that_the_tokenizer_makes(tmp_path: Path) -> None:
    """XLNet has no table of them: without them two texts would be read as one."""
    save_folder(tmp_path, "XLNetForSequenceClassification")
    assert [(one.name, one.values) for one in read(tmp_path).inputs][2] == ("token_type_ids", (0, 2))
    change_json(tmp_path / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    assert len(read(tmp_path).inputs) == 2


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_an_encoder_that_tags_is_taken_alone(tmp_path: Path) -> None:
    save_folder(tmp_path, "T5ForTokenClassification", decoder_start_token_id=0)
    change_config(tmp_path, is_encoder_decoder=True)
    assert read(tmp_path).num_classes == 3


# Ids that end with [SEP], which is what ends a text here, and padding behind them.
ENDED = torch.tensor([[2, 4, 9, 3, 0, 0], [2, 3, 0, 0, 0, 0], [2, 7, 8, 9, 4, 3]])
TWO_PARTS: dict[str, dict[str, Any]] = {
    "BartForSequenceClassification": {},
    "MBartForSequenceClassification": {"eos_token_id": 3, "pad_token_id": 0},
    "T5ForSequenceClassification": {"eos_token_id": 3, "decoder_start_token_id": 0, "num_decoder_layers": 1},
}


@pytest.mark.parametrize("network", TWO_PARTS)
def test_a_classifier_of_two_parts_is_read_at_the_end_of_each_text(network: str, tmp_path: Path) -> None:
    """As its own class reads it where all texts have as many ends, and the same in any batch where they have not."""
    saved = save_folder(tmp_path, network, **TWO_PARTS[network])
    checkpoint = read(tmp_path)
    assert [tensor.name for tensor in checkpoint.inputs] == ["input_ids", "attention_mask"]
    assert checkpoint.classes == LABELS
    assert "at the last token that ends it (id 3)" in " ".join(checkpoint.notes)
    module, mask = build_module(checkpoint), (ENDED != 0).long()
    with torch.no_grad():
        found, expected = module(ENDED, mask)["logits"], saved(input_ids=ENDED, attention_mask=mask).logits
        torch.testing.assert_close(found, expected)
        assert expected.std(dim=0).min() > 1e-3
        several = ENDED.clone()
        several[0, 1], several[1, 1] = 3, 4  # two ends, and none
        together = module(several, mask)["logits"]
        alone = [module(several[row : row + 1], mask[row : row + 1])["logits"] for row in range(len(several))]
        torch.testing.assert_close(together, torch.cat(alone))
        torch.testing.assert_close(alone[0], saved(input_ids=several[:1], attention_mask=mask[:1]).logits)


def test_a_classifier_of_two_parts_is_exported_for_texts_of_any_length(tmp_path: Path) -> None:
    save_folder(tmp_path, "T5ForSequenceClassification", **TWO_PARTS["T5ForSequenceClassification"])
    module = build_module(read(tmp_path))
    rows, length = torch.export.Dim("batch", min=1, max=4), torch.export.Dim("sequence", min=1, max=LONGEST)
    shapes = ({0: rows, 1: length}, {0: rows, 1: length})
    exported = torch.export.export(module, (ENDED, torch.ones_like(ENDED)), dynamic_shapes=shapes, strict=False)
    one = (torch.tensor([[3]]), torch.tensor([[1]]))
    torch.testing.assert_close(exported.module()(*one)["logits"], module(*one)["logits"])


def test_other_networks_of_two_parts_are_refused(tmp_path: Path) -> None:
    save_folder(tmp_path / "answers", "BartForQuestionAnswering")
    with pytest.raises(UsageError, match="has an encoder and a decoder"):
        read(tmp_path / "answers")
    save_folder(tmp_path / "ends", "BartForSequenceClassification")
    change_config(tmp_path / "ends", eos_token_id=[3, 4])
    with pytest.raises(UsageError, match="reads a text at its last one"):
        read(tmp_path / "ends")


def test_a_teacher_s_head_and_a_projection_are_taken(tmp_path: Path) -> None:
    small: dict[str, Any] = {"image_size": 32, "patch_size": 8}
    save_folder(tmp_path / "teacher", "DeiTForImageClassificationWithTeacher", tokenizer=False, **small)
    checkpoint = read(tmp_path / "teacher")
    assert (checkpoint.inputs[0].shape[1:], checkpoint.classes) == ((3, 32, 32), LABELS)
    own = {**small, "projection_dim": 8, "hidden_size": 32, "intermediate_size": 64}
    save_folder(tmp_path / "tower", "CLIPVisionModelWithProjection", tokenizer=False, num_hidden_layers=1, **own)
    assert read(tmp_path / "tower").decisions["image_embeds"] is None


def test_a_segmentation_decides_at_each_place(tmp_path: Path) -> None:
    small: dict[str, Any] = {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
    }
    small |= {"decoder_hidden_size": 8}
    save_folder(tmp_path, "SegformerForSemanticSegmentation", tokenizer=False, **small)
    checkpoint = read(tmp_path, input_shapes=((3, 32, 32),))
    assert (checkpoint.classes, checkpoint.decisions["logits"]) == (LABELS, 1)
    assert any("a client resizes to the image" in note for note in checkpoint.notes)


def test_a_clip_has_the_images_that_the_network_was_built_for(tmp_path: Path) -> None:
    save_folder(tmp_path, "VideoMAEForVideoClassification", tokenizer=False)
    checkpoint = read(tmp_path)
    assert checkpoint.inputs[0].shape == ("batch", 4, 3, 32, 32)
    assert checkpoint.classes == LABELS
    with pytest.raises(UsageError, match="asks for 16 x 16"):
        read(tmp_path, input_shapes=((3, 16, 16),))


@pytest.mark.parametrize(
    ("network", "options", "words"),
    [
        (
            "ErnieForSequenceClassification",
            {"use_task_id": True},
            "task_type_ids is no input: every",
        ),
        ("LukeForSequenceClassification", {"entity_vocab_size": 9, "entity_emb_size": 8}, "entity_ids is no input"),
    ],
)
def test_what_a_network_could_be_told_and_is_not_is_said(
    network: str, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    save_folder(tmp_path, network, **options)
    assert any(note.startswith(words) for note in read(tmp_path).notes)


def test_bigbird_takes_texts_that_it_attends_to_as_a_whole(tmp_path: Path) -> None:
    """Of longer ones it attends to blocks until it has met a shorter one: an artifact would be one or the other."""
    save_folder(tmp_path, "BigBirdForSequenceClassification", block_size=2, num_random_blocks=1)
    checkpoint = read(tmp_path)
    assert checkpoint.dims[0].maximum == 14
    assert any("of longer ones to blocks" in note for note in checkpoint.notes)
    change_config(tmp_path, attention_type="original_full")
    assert read(tmp_path).dims[0].maximum == LONGEST


def test_texts_are_no_longer_than_the_positions_that_a_network_lists(tmp_path: Path) -> None:
    """YOSO's embedding has two rows more, which stand before the first position."""
    save_folder(tmp_path, "YosoForSequenceClassification", tokenizer=False, max_position_embeddings=10)
    assert read(tmp_path).dims[0].maximum == 10


def test_longformer_is_refused_before_any_work(tmp_path: Path) -> None:
    save_folder(tmp_path, "LongformerForSequenceClassification", attention_window=[4, 4])
    with pytest.raises(UsageError, match=r"reads from the values of its inputs how much it computes(.|\n)*ModernBERT"):
        read(tmp_path)


@pytest.mark.parametrize(
    "kind", [{"attn_layers": ["local", "lsh"], "axial_pos_embds": False}, {"attn_layers": ["local"]}]
)
def test_reformer_is_refused_before_any_work(kind: dict[str, Any], tmp_path: Path) -> None:
    """torch's exporter takes minutes to fail on what it reads from values, and longer to say where."""
    sizes: dict[str, Any] = {
        "attention_head_size": 8,
        "feed_forward_size": 16,
        "is_decoder": False,
        "axial_pos_shape": [4, 6],
    }
    save_folder(tmp_path, "ReformerForSequenceClassification", axial_pos_embds_dim=[16, 16], **sizes, **kind)
    with pytest.raises(UsageError, match=r"reads from the values of its inputs how much it computes(.|\n)*ModernBERT"):
        read(tmp_path)


def test_images_are_as_large_as_the_tower_inside_says(tmp_path: Path) -> None:
    tower = {"image_size": 32, "patch_size": 8, "num_channels": 1, "num_attention_heads": 2, "num_hidden_layers": 1}
    save_folder(tmp_path, "CLIPForImageClassification", tokenizer=False, vision_config={**tower, "hidden_size": 32})
    assert read(tmp_path).inputs[0].shape == ("batch", 1, 32, 32)


def test_a_network_that_joins_neighbours_takes_three_tokens(tmp_path: Path) -> None:
    narrow: dict[str, Any] = {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}
    save_folder(tmp_path, "MobileBertForSequenceClassification", **narrow)
    checkpoint = read(tmp_path)
    assert (checkpoint.dims[0].minimum, checkpoint.dims[0].maximum) == (3, LONGEST)
    assert "texts of 3 tokens or more" in " ".join(checkpoint.notes)


def test_outputs_have_names_whatever_the_config_asks_for(tmp_path: Path) -> None:
    save_folder(tmp_path, "GPT2ForSequenceClassification", pad_token_id=0, return_dict=False)
    ids = torch.ones(2, 5, dtype=torch.int64)
    assert list(build_module(read(tmp_path))(input_ids=ids, attention_mask=ids)) == ["logits"]


def test_a_network_that_mixes_in_its_padding_is_not_called_one_that_scores_it(tmp_path: Path) -> None:
    """FNet has no mask: whatever the id of the filling, a filled text has other scores."""
    save_folder(tmp_path, "FNetForSequenceClassification", pad_token_id=3)
    assert read(tmp_path).num_classes == 3


@pytest.mark.parametrize("vocabulary", ["spm.model", "bpe.codes"])
def test_a_vocabulary_of_any_tokenizer_is_kept(vocabulary: str, folder: Path) -> None:
    """DeBERTa's published folders have it as spm.model, and no tokenizer.json."""
    (folder / "tokenizer.json").unlink()
    (folder / vocabulary).write_bytes(b"pieces")
    assert vocabulary in read(folder).kept


def drop(folder: Path, *names: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if name not in names}, folder / "model.safetensors")


def test_a_head_that_would_be_random_is_refused(tmp_path: Path) -> None:
    save_folder(tmp_path, "BertModel")
    change_config(tmp_path, architectures=["BertForSequenceClassification"])
    with pytest.raises(UsageError, match=r"lack 2 tensors .*random: classifier.bias, classifier.weight(.|\n)*its base"):
        read(tmp_path)


@pytest.mark.parametrize(("name", "text"), [("tokenizer_config.json", "[1]"), ("modules.json", '{"a": 1}')])
def test_settings_of_another_form_are_named(name: str, text: str, folder: Path) -> None:
    (folder / name).write_text(text)
    with pytest.raises(UsageError, match=f"{name} holds no JSON (object|list)"):
        read(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_folder(tmp_path, "BertForSequenceClassification", max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    shards[1].unlink()
    with pytest.raises(UsageError, match=rf"lacks 1 of its {len(shards)} weight files: {shards[1].name}"):
        read(tmp_path)


def test_a_shard_of_another_save_is_refused(tmp_path: Path) -> None:
    save_folder(tmp_path, "BertForSequenceClassification", max_shard_size="20KB")
    first, second, *_ = sorted(tmp_path.glob("model-*.safetensors"))
    first.write_bytes(second.read_bytes())
    with pytest.raises(UsageError, match=r"lacks \d+ tensors that model.safetensors.index.json says it has"):
        read(tmp_path)


def test_an_index_cannot_name_files_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": {"classifier.bias": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="names a file elsewhere"):
        read(folder)


def test_a_trainer_s_folder_of_checkpoints_names_them(folder: Path) -> None:
    run = folder.parent / "run"
    run.mkdir()
    folder.rename(run / "checkpoint-500")
    with pytest.raises(UsageError, match=r"name the one to deploy: .*checkpoint-500"):
        read(run)


def test_half_a_file_is_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UsageError, match="truncated or damaged"):
        read(folder)


def test_weights_that_are_no_numbers_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.bias"][1] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"'classifier.bias' has 1 NaN"):
        read(folder)


def test_code_of_the_folder_is_never_run(folder: Path) -> None:
    (folder / "modeling_mood.py").write_text("open(__file__ + '.ran', 'w').close()\n")
    change_config(folder, auto_map={"AutoModel": "modeling_mood.MoodModel"}, architectures=["MoodModel"])
    with pytest.raises(UsageError, match=r"code from a folder could do anything(.|\n)*no trust_remote_code"):
        read(folder)
    change_config(folder, architectures=["BertForSequenceClassification"])
    assert read(folder).architecture == "transformers/BertForSequenceClassification"
    assert list(folder.glob("*.ran")) == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"architectures": None}, "names no architecture"),
        ({"architectures": None, "architecture": "resnet18"}, r"of timm .* none fits"),
        ({"architectures": ["BertModel", "BertForMaskedLM"]}, "as its architecture"),
        ({"architectures": ["NoSuchModel"]}, "names NoSuchModel, which transformers .* does not have"),
        ({"architectures": ["LlamaForCausalLM"]}, "generates text token by token"),
        (
            {"architectures": ["BertForMultipleChoice"]},
            r"a task that is not known here(.|\n)*--input-shape NAME=DTYPE:SIZES",
        ),
        ({"model_type": "roberta"}, "names the class BertForSequenceClassification and the model_type 'roberta'"),
        ({"hidden_size": 48}, r"do not have the shapes(.|\n)*not \[48"),
        ({"num_attention_heads": 5}, "transformers cannot load"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantized \(gptq\)"),
        ({"id2label": {"0": "calm", "2": "glad"}}, "do not have the shapes|has the numbers"),
    ],
)
def test_a_config_that_cannot_be_right_is_refused(folder: Path, values: dict[str, Any], words: str) -> None:
    change_config(folder, **values)
    with pytest.raises(UsageError, match=words):
        read(folder)


def test_two_inputs_of_different_kinds_are_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "architectures": ["CLIPModel"]}))
    with pytest.raises(UsageError):
        read(folder)


@pytest.mark.parametrize(
    ("gone", "words"),
    [("config.json", "holds weights and no config.json"), ("model.safetensors", "holds config.json and no weights")],
)
def test_half_a_folder_is_refused(folder: Path, gone: str, words: str) -> None:
    (folder / gone).unlink()
    with pytest.raises(UsageError, match=words):
        read(folder)


def as_pickles(folder: Path, *, shards: int = 1) -> None:
    """The folder's weights in files of torch.save, as transformers wrote them before it had safetensors."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(weights, folder / "pytorch_model.bin")
        return
    places = {name: f"pytorch_model-{number % shards + 1:05}-of-{shards:05}.bin" for number, name in enumerate(weights)}
    for file in {*places.values()}:
        torch.save({name: weights[name] for name in weights if places[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("shards", [1, 3])
def test_weights_of_torch_save_are_read_like_others(folder: Path, shards: int) -> None:
    before = build_module(read(folder)).state_dict()
    as_pickles(folder, shards=shards)
    checkpoint = read(folder)
    assert (checkpoint.format, checkpoint.dtype, checkpoint.classes) == ("torch", "float32", LABELS)
    after = build_module(checkpoint).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


class Runs:
    """What a pickle would call when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("was_run"),)


def test_no_code_of_pickled_weights_is_run_and_no_other_file_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    as_pickles(folder)
    torch.save({"weight": Runs()}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="Path"):
        read(folder)
    assert not (folder / "was_run").exists()
    torch.save({"step": 3, "weight": torch.ones(2)}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="holds 'step', which is no tensor"):
        read(folder)
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UsageError, match=r"pytorch_model\.bin"):
        read(folder)
    (folder / "pytorch_model.bin").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model-1.bin"}}))
    with pytest.raises(UsageError, match=r"lacks 1 of its 1 weight files: pytorch_model-1\.bin"):
        read(folder)


def test_one_file_of_a_folder_is_told_to_be_the_folder_s(folder: Path) -> None:
    with pytest.raises(
        UsageError, match=r"lies in a folder of transformers(.|\n)*BertForSequenceClassification(.|\n)*give "
    ):
        read(folder / "model.safetensors")


@pytest.mark.parametrize(
    "options",
    [
        {"arch": "resnet18"},
        {"trust_pickle": True},
        {"input_shapes": ((3, 4),)},
        {"values": (ValuesRequest(input="input_ids", range=(0, 3)),)},
        {"preprocessing": PreprocessingRequest(fuse=True)},
    ],
)
def test_options_of_other_checkpoints_are_refused(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="was given for"):
        read(folder, **options)


def test_other_folders_are_left_to_others(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"")
    assert not is_pretrained_folder(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    assert not is_pretrained_folder(tmp_path)


def test_without_the_extra_its_pip_line_is_named(folder: Path) -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from pathlib import Path\n"
        "from deploy.checkpoint.load import read_checkpoint\n"
        "from deploy.checkpoint.model import CheckpointRequest\n"
        f"read_checkpoint(CheckpointRequest(path=Path({str(folder)!r})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert MissingError.__name__ in done.stderr
    assert 'pip install "deployctl[transformers]"' in done.stderr
