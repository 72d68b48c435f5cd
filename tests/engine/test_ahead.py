"""What is compiled ahead is guessed from a config; the guess is what the model then turns out to do."""

from __future__ import annotations

import pytest

from scheduler_worker.engine.attention.ahead import likely_layers
from scheduler_worker.engine.inspection import inspect_model
from tests.engine.models import FAMILIES, make_model


@pytest.mark.parametrize("family", list(FAMILIES))
def test_layers_are_guessed_with_the_sizes_and_options_that_kernels_depend_on(family: str) -> None:
    model = make_model(family)
    guessed = {(one.key_dim, one.value_dim, one.window is None, one.softcap) for one in likely_layers(model.config)}
    found = {(one.key_dim, one.value_dim, one.window is None, one.softcap) for one in inspect_model(model, family)}

    assert guessed == found
