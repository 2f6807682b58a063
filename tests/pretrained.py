"""Folders as `save_pretrained` leaves them: tiny seeded networks that tell inputs apart, a real tokenizer beside."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploy.checkpoint.pretrained import import_transformers

WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *("the", "a", "bird", "flew", "over", "small", "grey", "house", "and", "sang", "in", "morning", "cold", "may"),
)
LONGEST = 24
LABELS = ("calm", "angry", "glad")

_TEXT = {"vocab_size": len(WORDS), "max_position_embeddings": 64}
_BODY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_OWN: dict[str, dict[str, Any]] = {
    "distilbert": {**_TEXT, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "vit": {**_BODY, "image_size": 32, "patch_size": 8},
    "deberta-v2": {
        **_TEXT,
        **_BODY,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 16,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "modernbert": {
        **_TEXT,
        **_BODY,
        "local_attention": 8,
        "classifier_pooling": "mean",
        "pad_token_id": 0,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    "gpt2": {
        "vocab_size": len(WORDS),
        "n_positions": 64,
        "n_embd": 32,
        "n_layer": 1,
        "n_head": 2,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    "t5": {"vocab_size": len(WORDS), "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2},
    "bart": {
        **_TEXT,
        "d_model": 32,
        **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")},
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "decoder_start_token_id": 3,
        "forced_eos_token_id": 3,
    },
    "xlnet": {"vocab_size": len(WORDS), "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 64, "pad_token_id": 0},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "glpn": {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 8,
    },
    "swin2sr": {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 8},
    "videomae": {**_BODY, "image_size": 32, "patch_size": 8, "num_frames": 4, "tubelet_size": 2},
    "yolos": {**_BODY, "image_size": [32, 48], "patch_size": 8, "num_detection_tokens": 5},
    "rt_detr": {
        "d_model": 32,
        "encoder_hidden_dim": 32,
        "encoder_in_channels": [16, 16, 16],
        "decoder_in_channels": [32, 32, 32],
        "backbone_config": {
            "model_type": "rt_detr_resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16, 16, 16],
            "depths": [1, 1, 1, 1],
            "out_features": ["stage2", "stage3", "stage4"],
        },
        **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")},
        "num_queries": 5,
    },
    "detr": {
        "d_model": 32,
        "num_queries": 5,
        **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")},
        "backbone_config": {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
            "out_features": ["stage2"],
        },
    },
}


def save_folder(folder: Path, network: str, *, tokenizer: bool = True, **options: Any) -> nn.Module:
    """A seeded network of this class, saved; `options` are its config's, or `max_shard_size` and `dtype`."""
    transformers = import_transformers()
    shard = {"max_shard_size": options.pop("max_shard_size")} if "max_shard_size" in options else {}
    dtype = options.pop("dtype", torch.float32)
    cls = getattr(transformers, network)
    torch.manual_seed(0)
    module = cls(cls.config_class(**{**_small(cls.config_class.model_type), **options}))
    _enliven(module)
    module.eval().to(dtype).save_pretrained(folder, **shard)
    if tokenizer:
        make_tokenizer().save_pretrained(folder)
    return module  # type: ignore[no-any-return]


def make_tokenizer() -> Any:
    """A word-level tokenizer with BERT's special tokens and type ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=LONGEST, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def change_config(folder: Path, **values: Any) -> None:
    """Write other values into config.json; None takes a key out."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def _small(kind: str) -> dict[str, Any]:
    return {**_OWN.get(kind, {**_TEXT, **_BODY}), "id2label": dict(enumerate(LABELS))}


def _enliven(module: nn.Module) -> None:
    """Weights of the size that training gives: the initial ones of a tiny network answer nearly the same to all."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5 * float(parameter[0].numel()) ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, part in module.named_modules():
            head = isinstance(part, nn.Linear) and name.endswith(("classifier", "classifier.1", "out_proj"))
            if head or isinstance(part, nn.Embedding):
                part.get_parameter("weight").normal_()
