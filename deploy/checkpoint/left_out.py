"""What some networks of texts can be told beside ids, mask and types, and is no input of their versions: said as notes.

Owns the list of these, each with what the network takes where it is not given. Called by pretrained_inputs.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# The parameter of the forward, and what the network takes without it.
_ASSUMED = {
    "task_type_ids": "every token is of task 0",
    "langs": "no embedding of a language is added",
    "lang_ids": "every text is in the default language of config.json",
    "entity_ids": "no entities stand beside the words",
}
_OWN = "give the module as --factory package.module:function, each input as --input-shape NAME=DTYPE:SIZES"


def left_out(network: "nn.Module", takes: Collection[str]) -> tuple[str, ...]:
    """A note on each thing that the network could be told and is not, with what it then takes."""
    return tuple(
        f"{name} is no input: {assumed}, as {type(network).__name__} takes it where none are given; "
        f"where training gave them, {_OWN}"
        for name, assumed in _ASSUMED.items()
        if name in takes and _used(network.config, name)
    )


def _used(config: Any, name: str) -> bool:
    """Whether the network has a table for it."""
    if name == "task_type_ids":
        return bool(getattr(config, "use_task_id", False))
    if name == "langs":
        return getattr(config, "n_langs", 1) > 1 and bool(getattr(config, "use_lang_emb", False))
    return True
