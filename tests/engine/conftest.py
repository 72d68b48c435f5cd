"""One core and no services for the engine's tests."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from tests.engine.models import make_model


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(one_thread: None) -> PreTrainedModel:
    return make_model("llama")
