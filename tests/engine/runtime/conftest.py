"""Fixtures of the engine's tests: models by name, and one thread for torch."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from tests.engine.runtime import models  # noqa: E402  # needs torch
from tests.engine.runtime.models import Answer  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """make_model(family, dtype) -> a fresh model on eager experts, always with the same weights."""
    return lambda family="mixtral", dtype="bfloat16": copy.deepcopy(models.original(family, dtype))


@pytest.fixture(scope="session")
def reference() -> Callable[..., Answer]:
    """reference(family, dtype) -> what that model answers when it is not offloaded."""
    return lambda family="mixtral", dtype="bfloat16": models.reference(family, dtype)
