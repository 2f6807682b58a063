"""What two model configurations differ in, field by field, as Triton understands them and not as text.

Owns the walk through the protobuf; a version's own number and the order of a map say nothing. Called by diff, and by
promotion where somebody edited the promoted config.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deploy.repository.config import renumbered
from deploy.repository.protobuf import parse_config


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigChange:
    """One field by its path, such as `instance_group[0].count`, and both values; empty where a side has none."""

    path: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.path}: {self.before or 'unset'} -> {self.after or 'unset'}"


def config_changes(before: str, after: str) -> tuple[ConfigChange, ...]:
    """What differs between two configs given as text, whatever version each is for.

    Raises UsageError if one of them cannot be parsed.
    """
    sides = [parse_config(renumbered(text, 1)) for text in (before, after)]
    return tuple(_differences("", *sides))


def _differences(path: str, before: Any, after: Any) -> Iterator[ConfigChange]:
    for field in before.DESCRIPTOR.fields:
        place = f"{path}.{field.name}" if path else field.name
        old, new = getattr(before, field.name), getattr(after, field.name)
        if _is_map(field):
            for key in sorted({*old, *new}):
                yield from _pair(f'{place}["{key}"]', field, old.get(key), new.get(key))
        elif _is_repeated(field):
            for index in range(max(len(old), len(new))):
                yield from _pair(f"{place}[{index}]", field, _at(old, index), _at(new, index))
        elif field.message_type is not None:
            present = [value if side.HasField(field.name) else None for side, value in ((before, old), (after, new))]
            yield from _pair(place, field, *present)
        elif old != new:
            yield ConfigChange(path=place, before=_word(field, old), after=_word(field, new))


def _pair(place: str, field: Any, old: Any, new: Any) -> Iterator[ConfigChange]:
    """Two values at one place, each None where that side has none."""
    if old == new:
        return
    message = _value_field(field).message_type is not None
    if message and old is not None and new is not None:
        yield from _differences(place, old, new)
    else:
        yield ConfigChange(path=place, before=_shown(field, old), after=_shown(field, new))


def _is_repeated(field: Any) -> bool:
    # `label` is deprecated in newer protobuf releases, and older ones lack `is_repeated`.
    repeated = getattr(field, "is_repeated", None)
    return bool(field.label == field.LABEL_REPEATED if repeated is None else repeated)


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _value_field(field: Any) -> Any:
    return field.message_type.fields_by_name["value"] if _is_map(field) else field


def _at(values: Any, index: int) -> Any:
    return values[index] if index < len(values) else None


def _shown(field: Any, value: Any) -> str:
    if value is None:
        return ""
    field = _value_field(field)
    if field.message_type is None:
        return _word(field, value)
    from google.protobuf import text_format

    return text_format.MessageToString(value, as_one_line=True) or "{}"


def _word(field: Any, value: Any) -> str:
    if field.enum_type is not None:
        return str(field.enum_type.values_by_number[value].name)
    return str(value)
