"""Tests run on two threads at most, so that results and times do not depend on the size of the machine."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")         # no test may reach the network


@pytest.fixture(scope="module")
def one_thread():
    """For tests that compare bits, and for tiny networks, which several threads make slower."""
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
