"""The rule for tokens: what agrees, what is a tie, what is another model, and what proves nothing."""

from pathlib import Path

import pytest

from deploy.errors import UsageError
from deploy.evidence import Verdict
from deploy.llm.records import Prompt, Reference
from deploy.llm.tokens import compare, judge_tokens
from deploy.slo.prompts import PROMPTS, read_prompts

FIRST = Prompt(text="a", tokens=(5, 6, 7, 8), margins=(2.0, 0.5, 0.001, 1.0))
SECOND = Prompt(text="b", tokens=(9, 9, 9, 9), margins=(1.0, 1.0, 1.0, 1.0))
REFERENCE = Reference(prompts=(FIRST, SECOND), dtype="float32", error=1e-4, tie=0.003, transformers="5")


def judged(*answers: tuple[int, ...]) -> tuple[Verdict, str]:
    found = judge_tokens(REFERENCE, [compare(REFERENCE, number, tokens) for number, tokens in enumerate(answers)])
    return found.verdict, found.reason


def test_the_same_tokens_pass() -> None:
    assert judged((5, 6, 7, 8), (9, 9, 9, 9)) == (
        Verdict.PASS,
        "8 of 8 greedy tokens compared and equal to transformers'",
    )


def test_another_token_with_a_margin_fails_and_is_named() -> None:
    verdict, reason = judged((5, 1, 7, 8), (9, 9, 9, 9))
    assert verdict is Verdict.FAIL
    assert reason == "prompt 0: token 1 is 1 and not 6, which leads by 0.5 where 0.003 is a tie"


def test_an_adapter_that_answers_otherwise_is_named() -> None:
    adapted = FIRST.model_copy(update={"adapter": "support"})
    reference = REFERENCE.model_copy(update={"prompts": (adapted, SECOND)})
    found = judge_tokens(reference, [compare(reference, 0, (1,)), compare(reference, 1, SECOND.tokens)])
    assert "prompt 0 of adapter support: token 0" in found.reason


def test_two_best_tokens_within_rounding_may_change_places_and_end_the_comparison() -> None:
    verdict, reason = judged((5, 6, 1, 2), (9, 9, 9, 9))
    assert verdict is Verdict.PASS
    assert "6 of 8" in reason
    assert "1 of 2 prompts end in a tie" in reason


def test_an_answer_that_ends_early_fails() -> None:
    verdict, reason = judged((5, 6, 7, 8), (9, 9))
    assert verdict is Verdict.FAIL
    assert "token 2 is nothing and not 9" in reason


def test_mostly_ties_decide_nothing() -> None:
    shaky = FIRST.model_copy(update={"margins": (0.001,) * 4})
    reference = REFERENCE.model_copy(update={"prompts": (shaky, shaky)})
    found = judge_tokens(reference, [compare(reference, number, (1, 1, 1, 1)) for number in (0, 1)])
    assert (found.verdict, found.reason) == (Verdict.UNDECIDED, "only 0 of 8 tokens could be compared before a tie")


def test_one_continuation_for_every_prompt_decides_nothing() -> None:
    reference = REFERENCE.model_copy(update={"prompts": (SECOND, SECOND)})
    found = judge_tokens(reference, [compare(reference, number, SECOND.tokens) for number in (0, 1)])
    assert found.verdict is Verdict.UNDECIDED
    assert "proves nothing" in found.reason


def test_prompts_come_from_a_file_or_are_our_own(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("first\n\nsecond\n")
    assert read_prompts(file) == ("first", "second")
    assert read_prompts(None) == PROMPTS
    file.write_text("\n")
    with pytest.raises(UsageError, match="holds no prompt"):
        read_prompts(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")
