"""What is said of a proof while it lasts: how much of it is done, and how long the rest takes at that pace."""

import pytest

from deploy.validate.pace import Pace


@pytest.mark.parametrize(
    ("done", "seconds", "said"),
    [
        (50, 300.0, "5 min so far, 25 % done, some 15 min more at this pace"),
        (190, 600.0, "10 min so far, 95 % done, less than a minute more at this pace"),
        (0, 180.0, "3 min so far"),
        (200, 180.0, "3 min so far"),
    ],
)
def test_the_rest_is_told_from_what_is_done(done: int, seconds: float, said: str) -> None:
    pace = Pace(artifacts=2, rows=200)
    pace.asked(done)
    assert pace.said(seconds) == said
