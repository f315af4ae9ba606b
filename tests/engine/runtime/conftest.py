"""Fixtures of the engine's tests: models by name, and one thread for torch."""

import copy
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tests.engine.runtime import models  # noqa: E402  # needs torch
from tests.engine.runtime.models import MakeModel, Reference  # noqa: E402
from tests.tracekit.recorder.families import packages  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """make_model(family, dtype) -> a fresh model on eager experts, always with the same weights."""
    return lambda family="mixtral", dtype="bfloat16": copy.deepcopy(models.original(family, dtype))


@pytest.fixture(scope="session")
def reference() -> Reference:
    """reference(family, dtype) -> what that model answers when it is not offloaded."""
    return lambda family="mixtral", dtype="bfloat16": models.reference(family, dtype)


@pytest.fixture(scope="session")
def found() -> dict[str, list[str]]:
    """The MoE families of the installed transformers: package -> model types."""
    transformers.utils.logging.set_verbosity_error()
    return packages()
