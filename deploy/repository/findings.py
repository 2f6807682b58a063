"""What a lint rule gives back.

Owns two shapes of one thing: the pair a rule yields and the value a caller gets. Called by the lint modules.
"""

from dataclasses import dataclass

Finding = tuple[str, str]
"""The name of the rule, and a sentence about what breaks it."""


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One thing that Triton would reject: the rule's name, and a sentence about what breaks it."""

    rule: str
    message: str
