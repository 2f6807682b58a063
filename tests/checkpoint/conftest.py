"""What every test of this room shares: one thread, since the networks are small and the machine is shared."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
