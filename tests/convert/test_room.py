"""A full disk is told as one, whoever met it and whatever the words."""

import errno
from pathlib import Path

import pytest

from deploy.convert.room import minding_the_disk
from deploy.errors import UnfinishedError


def failing(error: Exception, cause: Exception | None, *, folder: Path) -> None:
    raise error from cause


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), None),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), None),
        (UnfinishedError("C++ compile error"), RuntimeError("/tmp/a.s: fatal error: No space left on device")),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0: file write failed"), None),
    ],
)
def test_a_full_disk_names_the_room_that_is_needed(error: Exception, cause: Exception | None, tmp_path: Path) -> None:
    with pytest.raises(UnfinishedError, match=r"the disk is full: .* MB are free") as caught:
        minding_the_disk(failing, weights=2**60)(error, cause, folder=tmp_path)

    assert f"about {(2**60 + 1e8) / 1e6:.0f} MB" in str(caught.value)


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "Permission denied"), RuntimeError("PytorchStreamWriter failed writing file 0")]
)
def test_anything_else_stays_what_it_is(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught:
        minding_the_disk(failing, weights=0)(error, None, folder=tmp_path)

    assert caught.value is error
