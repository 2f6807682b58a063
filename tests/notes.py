"""A progress display that keeps what is said, for tests that look at it."""

from deploy.progress import Silent


class Notes(Silent):
    """Keeps what is said, in order."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        """Keep it."""
        self.said.append(text)
