"""The compiler's rules for dtypes are put together once, and anew where there is one more."""

from collections.abc import Iterator

import pytest
import torch._inductor.lowering  # noqa: F401 - some rules come with it
from torch._inductor import utils
from torch._inductor.dtype_propagation import DtypePropagationOpsHandler

from deploy.convert.dtype_rules import rules_made_once


@pytest.fixture
def one_more() -> Iterator[str]:
    """The name of a rule that did not exist before; it goes with the test."""
    rules, name = utils.op_dtype_propagation_rules, "a_rule_of_this_test"
    yield name
    rules.pop(name, None)
    vars(DtypePropagationOpsHandler()).pop(name, None)


def rule(name: str) -> object:
    return vars(DtypePropagationOpsHandler()).get(name)


def test_rules_are_put_together_once_while_it_lasts() -> None:
    with rules_made_once():
        assert rule("add") is rule("add")
    assert rule("add") is not rule("add")


def test_a_rule_that_comes_later_is_known(one_more: str) -> None:
    with rules_made_once():
        assert rule(one_more) is None
        utils.op_dtype_propagation_rules[one_more] = utils.op_dtype_propagation_rules["add"]
        assert rule(one_more) is not None
