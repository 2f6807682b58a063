"""The base of every value that is written to disk and read back: frozen, and validated by a schema.

Owns no record itself; `spec`, `targets`, `evidence` and `repository.manifest` derive from it. Files whose keys are
others' to choose are read by `read_object`.
"""

import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from deploy.errors import UsageError
from deploy.files import write_atomically


class Record(BaseModel):
    """An immutable value with a JSON form; unknown keys and wrong types are refused when read."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", allow_inf_nan=True)

    def to_json(self) -> str:
        """The record as indented JSON text that ends in a newline; NaN and infinities become strings."""
        return self.model_dump_json(indent=2) + "\n"

    def plain(self) -> dict[str, Any]:
        """The same as values that any JSON writer takes: NaN and infinities, which JSON lacks, are strings."""
        found: dict[str, Any] = json.loads(self.model_dump_json())
        return found

    def write(self, path: Path) -> None:
        """Write the record to `path` whole or not at all."""
        write_atomically(path, self.to_json().encode())

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record stored at `path`. Raises UsageError if it is absent or does not fit the schema."""
        # Whoever reads a pipe waits for ever.
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is no regular file", expected=f"a {cls.__name__} as JSON")
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise UsageError(
                f"{path} is missing",
                expected=f"a {cls.__name__} as JSON",
                fix="restore the file, or package the checkpoint again",
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the document"
            raise UsageError(
                f"{path} is not a valid {cls.__name__}: {where}: {first['msg']}",
                expected="a file written by deployctl, unedited",
                fix="package the checkpoint again, or restore the file",
            ) from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file that other tools write and read. Raises UsageError if there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} cannot be read: {error}", expected="a JSON object", fix="copy or write that file again"
        ) from error
    if not isinstance(found, dict):
        raise UsageError(
            f"{path} holds a {type(found).__name__}", expected="a JSON object", fix="copy or write that file again"
        )
    return found
