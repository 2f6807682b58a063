"""What tests of several rooms share: the engine that serves for real."""

import pytest

from deploy.serve.engines import Engine
from deploy.serve.install import install_engine


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The local engine, fetched once into the user's cache. A machine that cannot have it fails, and skips nothing."""
    return install_engine()
