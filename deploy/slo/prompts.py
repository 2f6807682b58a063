"""What a language model is asked where nobody says: a few prompts of several kinds, or a file with one a line.

Owns the prompts only. Called by packaging a language model and by `slo --llm`.
"""

from pathlib import Path

from deploy.errors import UsageError

PROMPTS = (
    "The quick brown fox jumps over the lazy dog.",
    "In 1969, people walked on the moon for",
    "def fibonacci(n):\n    ",
    "Question: what is the capital of France?\nAnswer:",
    "Once upon a time there was a",
    "SELECT name, price FROM products WHERE",
)


def read_prompts(path: Path | None) -> tuple[str, ...]:
    """The prompts in a file, one a line; without one those of this module. Raises UsageError if it holds none."""
    if path is None:
        return PROMPTS
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", expected="a text file, one prompt a line") from error
    if not lines:
        raise UsageError(f"{path} holds no prompt", expected="one prompt a line")
    return tuple(lines)
