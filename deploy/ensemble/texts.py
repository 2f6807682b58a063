"""The texts that an ensemble is proven with: the user's own, seeded ones of every kind, and what is no text.

Owns what they are, and which of them the network takes. Called by text and tokens.
"""

from pathlib import Path

from deploy.ensemble.inputs import NamedInput, spread
from deploy.errors import UsageError

MAX_BYTES = 1 << 20

_SEEDED = {
    "praise": "The parcel came two days late, but everybody was kind and it works beautifully. Thank you!",
    "a complaint": "Absolutely terrible: it broke after an hour and nobody answers. I want my money back.",
    "a question": "Can I change the address of order #88-12/A, or call +49 30 1234567?",
    "code and addresses": "if (x != y) { return a[0]; }  # see https://example.org/?q=1&r=2 or mail a.b@example.org",
    "accents": "Çà et là, naïve façade: Straße, Ærø, Łódź, e\u0301 beside é",
    "other scripts": "東京で会いましょう。 Привет, мир! مرحبا بالعالم नमस्ते 안녕하세요",
    "emoji": "so happy 😀👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈 !!!",
    "control characters": "a\ttab, a\nline, a bell\x07, a zero\x00, \u200bnothing\ufeff and \u202eturned\u202c",
    "special tokens": "[CLS] <s> is no start, [SEP] </s> no end, [MASK] <mask> [PAD] <pad> <|endoftext|> [UNK]",
    "one letter": "a",
    "one long word": "donaudampfschifffahrt" * 12,
    "blanks": " \t\n ",
    "an empty text": "",
    "a long text": "It was the best of times, it was the worst of times. " * 1200,
}  # fmt: skip


def read_texts(file: Path) -> tuple[NamedInput, ...]:
    """At most 16 of the file's lines that are not blank, spread evenly. Raises UsageError if there is none."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--texts {file} cannot be read: {error}", expected="a file in UTF-8 with one text per line"
        ) from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UsageError(f"--texts {file} holds no text", expected="a file in UTF-8 with one text per line")
    return tuple(
        NamedInput(name=f"{file.name}, line {number}", data=line.encode()) for number, line in spread(numbered)
    )


def seeded_texts(drawn: tuple[str, ...]) -> tuple[NamedInput, ...]:
    """Texts in many scripts and of many lengths, and those `drawn` from the tokenizer's own words."""
    words = {f"words {number}": text for number, text in enumerate(drawn, 1)}
    return tuple(NamedInput(name=f"seeded {name}", data=text.encode()) for name, text in (words | _SEEDED).items())


def damaged_texts() -> tuple[NamedInput, ...]:
    """What no client may send: more than a mebibyte, and bytes that are not UTF-8."""
    return (
        NamedInput(name="a text of more than a mebibyte", data=b"a" * (MAX_BYTES + 1)),
        NamedInput(name="a surrogate alone", data=b"half a pair \xed\xa0\x80"),
        NamedInput(name="a letter cut in two", data="naïv".encode()[:3]),
        NamedInput(name="an image", data=b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"),
    )
