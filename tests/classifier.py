"""A small BERT classifier that is really trained, on text that comes with Python and scikit-learn.

Its tokenizer is WordPiece, learnt from the same text. Nothing is fetched.
"""

import pydoc_data.topics
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from deploy.checkpoint.pretrained import import_transformers

CLASSES = ("manual", "data")
_LONGEST = 48
_VOCABULARY = 1500
_HELD_OUT = 60
_EPOCHS, _BATCH = 4, 32


@dataclass(frozen=True)
class Trained:
    """Held-out texts with their classes, and the share of them that the network tells right."""

    texts: list[str]
    labels: list[str]
    accuracy: float


def train_classifier(folder: Path) -> Trained:
    """Train, save what `save_pretrained` saves, and say how good it is."""
    texts, labels = _sentences()
    tokenizer = _tokenizer(texts)
    transformers = import_transformers()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=_LONGEST, id2label=dict(enumerate(CLASSES)), hidden_dropout_prob=0.0,
    )  # fmt: skip
    module = transformers.BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(texts) - _HELD_OUT).split(_BATCH):
            inputs = _encoded(tokenizer, [texts[row] for row in rows])
            module(**inputs, labels=torch.tensor([labels[row] for row in rows])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    module.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    held_out, wanted = texts[-_HELD_OUT:], torch.tensor(labels[-_HELD_OUT:])
    with torch.no_grad():
        found = module(**_encoded(tokenizer, held_out)).logits.argmax(dim=1)
    return Trained(
        texts=held_out,
        labels=[CLASSES[label] for label in labels[-_HELD_OUT:]],
        accuracy=float((found == wanted).float().mean()),
    )


def _encoded(tokenizer: Any, texts: list[str]) -> Any:
    return tokenizer(texts, padding=True, truncation=True, return_tensors="pt")


def _sentences() -> tuple[list[str], list[int]]:
    """Sentences of both classes, as many of each, in a seeded order."""
    described = resources.files("sklearn.datasets") / "descr"
    manual = " ".join(pydoc_data.topics.topics.values())
    data = " ".join(
        file.read_text(encoding="utf-8") for file in sorted(described.iterdir(), key=str) if ".rst" in file.name
    )
    both = [_split(text) for text in (manual, data)]
    count = min(map(len, both))
    pairs = [(sentence, label) for label, found in enumerate(both) for sentence in found[:count]]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    return [pairs[n][0] for n in order], [pairs[n][1] for n in order]


def _split(text: str) -> list[str]:
    whole = re.sub(r"[\W\d_]*\n[\W\d_]*", " ", text)
    return [part.strip() for part in re.split(r"(?<=[.:]) ", whole) if 30 < len(part.strip()) < 300]


def _tokenizer(texts: list[str]) -> Any:
    """BERT's WordPiece, learnt from these texts."""
    from tokenizers import BertWordPieceTokenizer, processors

    learnt = BertWordPieceTokenizer(lowercase=True)
    learnt.train_from_iterator(texts, vocab_size=_VOCABULARY, show_progress=False)
    ends = [(token, learnt.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    learnt.post_processor = processors.BertProcessing(*ends)
    return import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=learnt._tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=_LONGEST,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
