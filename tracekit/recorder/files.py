"""The files of a local model: which hold its weights, whether they are whole, and its JSON."""

import json
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tracekit.errors import ModelError, shortened
from tracekit.opening import checked, read_file

_INDEX = "model.safetensors.index.json"
_MAX_JSON_BYTES = 64 << 20


def check_weights(directory: Path) -> None:
    """Raise ModelError unless every safetensors file that the model needs is there, whole and well-formed."""
    for path in weight_files(directory):
        try:
            with safe_open(checked(path), framework="pt"):  # checks the header and that it accounts for every byte
                pass
        except FileNotFoundError:
            raise ModelError(f"{path} is missing: the model's weights are incomplete") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{path} is truncated or damaged: {short(error)}") from None


def stored_numbers(directory: Path) -> int:
    """How many numbers the weight files hold, by their headers."""
    total = 0
    for path in weight_files(directory):
        try:
            with safe_open(checked(path), framework="pt") as file:
                total += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  # no mapping
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{path} is truncated or damaged: {short(error)}") from None
    return total


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a local model, in order; they need not exist when an index names them."""
    index = directory / _INDEX
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelError(f"{index} has no weight_map")
        names = sorted({str(name) for name in shards.values()})
        if any(Path(name).name != name for name in names):
            raise ModelError(f"{index} names a file outside the model's directory")
        return [directory / name for name in names]
    single = directory / "model.safetensors"
    if single.is_file():
        return [single]
    shards = sorted(path.name for path in directory.glob("model-*-of-*.safetensors"))
    if shards:
        raise ModelError(
            f"{directory} holds {len(shards)} shards ({shards[0]}, ...) but no {_INDEX}, which says what is in them: "
            "copy it from where the model came from"
        )
    raise ModelError(f"{directory} has no model.safetensors: only safetensors weights are read")


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file. ModelError for anything else."""
    try:
        value = json.loads(read_file(path, _MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {short(error)}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return value


def short(error: BaseException) -> str:
    """What an error says, in one line of bounded length."""
    return shortened(" ".join(str(error).split()) or type(error).__name__, 300)
