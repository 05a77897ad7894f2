"""What holds for every test."""

from __future__ import annotations

import signal

import pytest
import torch
from hypothesis import settings

# No deadlines: how long an example takes says more about the machine than about the code. The same examples every time.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell that starts pytest in the background has it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)
