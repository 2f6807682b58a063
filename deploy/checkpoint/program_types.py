"""Classes that a program's inputs or outputs were made of, and that are not known here: its author's dataclasses, say.

Owns a stand-in for each, so that the program is read without their code. Called by program.
"""

import re
from collections.abc import Iterable
from typing import Any

_UNKNOWN = re.compile(r"Deserializing (\S+) in pytree is not registered")


def register_stand_in(reason: str) -> bool:
    """Whether torch's `reason` for not loading a program is an unknown class, which has a stand-in from now on.

    In place of the class comes a dict of its fields, where the file names them, else a list.
    """
    from torch.utils import _pytree as pytree

    found = _UNKNOWN.search(reason)
    if found is None or found[1] in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE:
        return False
    stand_in = type("StandIn", (), {"__doc__": f"In place of {found[1]}."})
    pytree.register_pytree_node(
        stand_in,
        lambda _: ([], None),  # there is never an instance
        _named,
        serialized_type_name=found[1],
    )
    return True


def _named(values: Iterable[Any], context: Any) -> Any:
    """The values by their names in torch's context of a dataclass, [names, names of None], or in a list of names."""
    given = list(values)
    names = context[0] if isinstance(context, list) and len(context) == 2 and isinstance(context[0], list) else context
    told = isinstance(names, list) and len(names) == len(given) and all(isinstance(name, str) for name in names)
    return dict(zip(names, given, strict=True)) if told else given
