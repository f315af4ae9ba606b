"""Loading a model that lies on this machine; nothing is fetched. Every failure is one line."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tracekit.errors import ModelError
from tracekit.recorder.files import check_weights, read_json, short, stored_numbers
from tracekit.recorder.layers import count_routed_layers
from tracekit.recorder.seam import is_experts
from tracekit.recorder.words import check_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DTYPES: dict[str, torch.dtype | str] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# By preference; transformers leaves much of these untyped.
_AUTO: tuple[Any, ...] = (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModel,
)
_LOGGING: Any = transformers.utils.logging
_MAX_LAYERS = 512  # a configuration beyond this is damaged or hostile, and would take forever to build
_MOST_PACKED = 16  # weights of two bits in a number of 32


class LoadingReport(TypedDict):
    """What transformers says of the weights that it loaded."""

    missing_keys: set[str]
    mismatched_keys: set[tuple[str, torch.Size, torch.Size]]  # name, as stored, as expected


def load_model(
    path_or_id: str | Path, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The MoE model at a local directory, or of that hub name in the local cache, and its tokenizer.

    `dtype` is "auto" (as stored), float32, bfloat16 or float16; `device` "auto", "cpu", "cuda", "cuda:1", ...
    Only safetensors weights are read. Raises ModelError when anything is missing, damaged, unknown, or not an
    MoE model; all that is cheap to know is checked before any weight is read.
    """
    chosen, place = parse_dtype(dtype), parse_device(device)
    directory, config = _checked(path_or_id, trust_remote_code)
    tokenizer = load_tokenizer(directory, trust_remote_code=trust_remote_code)
    return _loaded(directory, config, chosen, place, trust_remote_code), tokenizer


def load_without_tokenizer(path_or_id: str | Path, dtype: str = "auto", device: str = "auto") -> PreTrainedModel:
    """As `load_model`, of a directory that need not have a tokenizer: who counts in tokens already needs none."""
    chosen, place = parse_dtype(dtype), parse_device(device)
    directory, config = _checked(path_or_id, trust_remote_code=False)
    return _loaded(directory, config, chosen, place, trust_remote_code=False)


def _checked(path_or_id: str | Path, trust_remote_code: bool) -> tuple[Path, "PreTrainedConfig"]:
    """The model's directory and configuration. Raises ModelError for all that is cheap to know."""
    directory = find_model(path_or_id)
    config = load_config(directory, trust_remote_code=trust_remote_code)
    empty = check_experts(config, directory, trust_remote_code=trust_remote_code)
    check_weights(directory)
    check_size(empty, directory)
    return directory, config


def _loaded(
    directory: Path,
    config: "PreTrainedConfig",
    dtype: "torch.dtype | str",
    place: torch.device,
    trust_remote_code: bool,
) -> PreTrainedModel:
    placement: dict[str, dict[str, torch.device]] = {"device_map": {"": place}} if find_spec("accelerate") else {}
    with quietly(directory):
        loaded, report = _auto_class(config).from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported here, by name
            **placement,
        )
        check_complete(report, directory)
        model = cast(PreTrainedModel, loaded.to(place))
        model.train(False)
        if not _grouped_mm_can_serve(model):
            model.set_experts_implementation("eager")
    return model


def find_model(path_or_id: str | Path) -> Path:
    """The directory of a model given as a path, or as a hub name whose snapshot is in the local cache."""
    name = str(path_or_id)
    if "\0" in name or not name:
        raise ModelError("a model is given as a directory or a hub name")
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} is not a model: it has no config.json")
        return path
    if path.exists():
        raise ModelError(f"{path} is a file; a model is a directory with config.json and safetensors weights")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"no model at {path}: the directory does not exist")
    from huggingface_hub import snapshot_download

    try:
        found = Path(snapshot_download(name, local_files_only=True))
    except Exception:  # the hub library raises many kinds, and all mean that it is not here
        raise ModelError(
            f"{name} is neither a directory nor in the local model cache, and nothing is downloaded: "
            f"fetch it first, for example with: hf download {name}"
        ) from None
    if not (found / "config.json").is_file():
        raise ModelError(f"the cached copy of {name} is incomplete: it has no config.json; fetch it again")
    return found


def load_config(directory: Path, *, trust_remote_code: bool = False) -> "PreTrainedConfig":
    """The transformers configuration of a local model, without what is for training only."""
    read_json(directory / "config.json")
    with quietly(directory):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=trust_remote_code
        )
        layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(layers, int) or not 1 <= layers <= _MAX_LAYERS:
        raise ModelError(f"{directory / 'config.json'} does not describe a decoder: num_hidden_layers is {layers}")
    for part in (config, config.get_text_config()):
        if getattr(part, "output_router_logits", False):
            part.output_router_logits = False  # for the auxiliary loss, which fails in batches of unequal prompts
    return config


def load_generation_settings(model: Any, directory: Path) -> None:
    """Give a model its settings of generation: a file of their own, else what its configuration says of them."""
    if not model.can_generate():
        return
    nowhere = dict.fromkeys(("cache_dir", "proxies", "token", "revision"))
    with quietly(directory):
        model.adjust_generation_fn(
            generation_config=None,
            from_auto_class=False,
            from_pipeline=None,
            pretrained_model_name_or_path=directory,
            force_download=False,
            local_files_only=True,
            subfolder="",
            trust_remote_code=False,
            **nowhere,
        )


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a local model."""
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # foreign files, foreign code: it fails in any way
        raise ModelError(f"{directory} has no tokenizer that can be loaded: {short(error)}") from None
    return cast(PreTrainedTokenizerBase, tokenizer)


def check_experts(config: "PreTrainedConfig", directory: Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The `empty_model`. Raises ModelError unless it is a language model with experts; reads no weights."""
    model = empty_model(config, directory, trust_remote_code=trust_remote_code)
    if count_routed_layers(model) == 0:
        raise ModelError(
            f"{directory} is a {config.model_type} model without experts: only mixture-of-experts models "
            "can be recorded or offloaded"
        )
    return model


def check_size(model: PreTrainedModel, directory: Path) -> None:
    """Raise ModelError where a configuration, here as an empty model, describes far more than the weight files hold.

    What the files lack would be made up first, at any size, and found missing then.
    """
    described = sum({id(parameter): parameter.numel() for parameter in model.parameters()}.values())
    stored = stored_numbers(directory)
    if described > _MOST_PACKED * stored:
        raise ModelError(
            f"{directory / 'config.json'} describes {described} parameters, the weights beside it hold {stored} "
            "numbers: the two do not belong together"
        )


def empty_model(
    config: "PreTrainedConfig", directory: Path, dtype: torch.dtype | None = None, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model of a configuration on the meta device: shapes without memory. ModelError naming `directory`."""
    with quietly(directory), torch.device("meta"):
        # A copy: the configuration is told what type the model was made in.
        made = _auto_class(config).from_config(copy.deepcopy(config), dtype=dtype, trust_remote_code=trust_remote_code)
    return cast(PreTrainedModel, made)


def check_complete(report: LoadingReport, directory: Path) -> None:
    """Raise ModelError where transformers' report on loading names weights that it has filled at random."""
    missing = sorted(report["missing_keys"])
    if missing:  # transformers only warns
        raise ModelError(f"{directory} lacks {len(missing)} of the model's weights, such as {missing[0]}")
    for name, stored, expected in sorted(report.get("mismatched_keys") or ()):
        raise ModelError(
            f"{directory} holds {name} as {'x'.join(map(str, stored))}, but its config.json makes it "
            f"{'x'.join(map(str, expected))}: the two do not belong together"
        )


def _auto_class(config: "PreTrainedConfig") -> Any:
    """What builds a model of a configuration that generates text, or, where there is none, one that reads it."""
    if getattr(config, "auto_map", None):  # code that comes with the model
        return next((auto for auto in _AUTO if auto.__name__ in config.auto_map), _AUTO[0])
    return next((auto for auto in _AUTO if type(config) in auto._model_mapping), _AUTO[0])


def parse_dtype(dtype: str) -> torch.dtype | str:
    """A torch dtype, or "auto", from its name."""
    check_dtype(dtype)
    return DTYPES[dtype]


def parse_device(device: str) -> torch.device:
    """A usable torch device from its name; "auto" is CUDA where there is such a device, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except (RuntimeError, ValueError):
        raise ModelError(f"unknown device {device!r}; known: auto, cpu, cuda, cuda:0, ...") from None
    if place.type not in ("cpu", "cuda"):
        raise ModelError(f"device {device!r} is not supported; use cpu or cuda")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"device {device!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices")
    return place


def _grouped_mm_can_serve(model: PreTrainedModel) -> bool:
    """Whether all experts' matrices have rows of whole 16 bytes, as torch's grouped matrix product demands.

    transformers chooses that product whatever the shapes, and then fails in the first forward pass.
    """
    return all(
        weight.stride(1) * weight.element_size() % 16 == 0
        for module in model.modules()
        if is_experts(module)
        for weight in module.parameters(recurse=False)
        if weight.dim() == 3
    )


@contextmanager
def quietly(directory: Path) -> Iterator[None]:
    """Let transformers work on a model: what it has to say is not heard, and whatever it raises is a ModelError."""
    try:
        with _quiet():
            yield
    except ModelError:
        raise
    except torch.OutOfMemoryError:
        raise ModelError(f"{directory} does not fit the device: use a smaller dtype, or offload its experts") from None
    except Exception as error:  # transformers, foreign configurations and foreign code fail in any way
        raise ModelError(f"{directory} cannot be loaded: {short(error)}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from writing warnings and bars to stderr; put its settings back after."""
    level, bars = _LOGGING.get_verbosity(), _LOGGING.is_progress_bar_enabled()
    _LOGGING.set_verbosity(_LOGGING.CRITICAL)
    _LOGGING.disable_progress_bar()
    try:
        yield
    finally:
        _LOGGING.set_verbosity(level)
        if bars:
            _LOGGING.enable_progress_bar()
