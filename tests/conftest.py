"""What tests of several rooms share: the engine that serves for real."""

import signal

import pytest

from deploy.serve.engines import Engine
from deploy.serve.install import install_engine

# A background job of a shell ignores SIGINT, and so do its children: tests that send it would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The local engine, fetched once into the user's cache. A machine that cannot have it fails, and skips nothing."""
    return install_engine()
