"""Runs the code of a model without a trace of it in the model: on a copy, with random numbers as they were."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def copied(model: Model) -> Model:
    """A copy of ``model`` with everything of its own but the parameters and what is computed from them."""
    shared = list(model.parameters())
    for module in model.modules():
        shared += [value for value in vars(module).values() if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(model, {id(value): value for value in shared})


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put the generators of random numbers back."""
    # BigBird seeds NumPy's global generator.
    numpy_state, state = np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(state)
