"""The tokenizer and the chat template beside a language model's weights: there, whole, and fit for the vocabulary.

Owns what of their files is looked at; neither is run. Called by `read`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.errors import MissingError, UsageError
from deploy.records import read_object

_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
# Stands for an image's embeddings in models that see; Gemma 3's of text alone have it too, beyond their vocabulary.
_PLACEHOLDER = re.compile(r"<(image|audio|video)_soft_token>")


def check_tokenizer(path: Path, *, vocabulary: int) -> None:
    """Raises UsageError if a folder has no tokenizer, or one with tokens beyond the model's vocabulary."""
    if not any(all((path / name).is_file() for name in names) for names in _TOKENIZERS):
        raise UsageError(
            f"{path} has no tokenizer",
            expected=", or ".join(" with ".join(names) for names in _TOKENIZERS),
            fix="tokenizer.save_pretrained(FOLDER) into the same folder",
        )
    if (path / "tokenizer.json").is_file():
        try:
            highest = _highest_token(read_object(path / "tokenizer.json"))
        except (AttributeError, TypeError) as error:
            raise UsageError(
                f"{path / 'tokenizer.json'} is no tokenizer: {error}",
                expected="what the library tokenizers writes: a model with its vocab, and added_tokens",
                fix="save it again: tokenizer.save_pretrained(FOLDER)",
            ) from error
        if highest >= vocabulary:
            raise UsageError(
                f"the tokenizer has a token {highest} and the model a vocabulary of {vocabulary}",
                expected="token ids below vocab_size",
                fix="save the tokenizer that the model was trained with, or resize the embeddings and train them",
            )


def _highest_token(tokenizer: Mapping[str, Any]) -> int:
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    added = (
        token.get("id", 0)
        for token in tokenizer.get("added_tokens") or ()
        if not _PLACEHOLDER.fullmatch(str(token.get("content")))
    )
    return max((*ids, *added), default=0)


def has_chat_template(path: Path) -> bool:
    """Whether there is one. Raises UsageError if it is no Jinja template."""
    text = _chat_text(path)
    if text is None:
        return False
    try:
        from jinja2 import Environment, TemplateSyntaxError
        from jinja2.ext import Extension, loopcontrols
        from jinja2.nodes import Node
        from jinja2.parser import Parser
    except ImportError as error:  # pragma: no cover - jinja2 is a dependency
        raise MissingError("jinja2 is missing", fix="pip install jinja2") from error

    class Generation(Extension):
        """Transformers' own block, which marks what to train on."""

        tags = frozenset({"generation"})  # type: ignore[assignment]

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        Environment(extensions=[loopcontrols, Generation], autoescape=True).parse(text)
    except TemplateSyntaxError as error:
        raise UsageError(
            f"the chat template of {path} cannot be parsed: line {error.lineno}: {error.message}",
            expected="a Jinja template",
            fix="correct it, and try it with tokenizer.apply_chat_template",
        ) from error
    return True


def _chat_text(path: Path) -> str | None:
    if (path / "chat_template.jinja").is_file():
        try:
            return (path / "chat_template.jinja").read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"the chat template {path / 'chat_template.jinja'} is no UTF-8: {error.reason} at byte {error.start}",
                expected="a Jinja template in UTF-8",
                fix="save it again: tokenizer.save_pretrained(FOLDER)",
            ) from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = read_object(path / name).get("chat_template") if (path / name).is_file() else None
        if isinstance(found, list):
            named = [one for one in found if isinstance(one, dict)]
            found = next((one.get("template") for one in named if one.get("name") == "default"), None)
        if isinstance(found, str):
            return found
    return None
