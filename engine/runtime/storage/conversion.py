"""`Group`: the tensors of a checkpoint that one parameter of a model is made of, and their conversion.

transformers (v5) stacks the experts that most checkpoints hold one by one, and transposes and interleaves others. Its
own table of conversions says how, family by family. Here it is run on one expert at a time, or, where experts cannot
be told apart before they are converted, on one parameter of one layer at a time.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    ConversionOps,
    Interleave,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from engine.runtime.storage.checkpoint import Checkpoint
from tracekit.errors import ModelError

Kept = Literal["listed", "stacked", "together"]


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors of a checkpoint that become one parameter of a model, or, in one go, several.

    `converter` turns them into `targets`, the first of which names the group; None where a tensor is only renamed.
    `sources` are the checkpoint's names by the pattern that matched, in the order in which transformers stacks them.
    """

    converter: WeightConverter | None
    targets: tuple[str, ...]
    sources: Mapping[str, Sequence[str]]

    @property
    def names(self) -> list[str]:
        """Names of all its tensors in the checkpoint."""
        return [name for names in self.sources.values() for name in names]

    def kept(self, experts: int, checkpoint: Checkpoint) -> Kept:
        """How the checkpoint keeps experts: one by one, stacked, or in a way in which they cannot be told apart.

        They can where no operation mixes entries of the first dimension.
        """
        operations = [] if self.converter is None else list(self.converter.operations)
        listed = bool(operations) and isinstance(operations[0], MergeModulelist) and operations[0].dim == 0
        if not all(_keeps_first(operation) for operation in operations[listed:]):
            return "together"
        if listed:
            return "listed" if all(len(names) == experts for names in self.sources.values()) else "together"
        single = all(len(names) == 1 for names in self.sources.values())
        stacked = single and all(checkpoint[name].shape[:1] == (experts,) for name in self.names)
        return "stacked" if stacked else "together"

    def convert(self, model: PreTrainedModel, tensors: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        """The parameters made of tensors by pattern. ModelError when transformers cannot make them."""
        if self.converter is None:
            return {self.targets[0]: next(iter(tensors.values()))[0]}
        converter = deepcopy(self.converter)
        collected: dict[str, Any] = converter.collected_tensors  # tensors, or what will be one
        collected.update(tensors)
        try:
            made = converter.convert(self.targets[0], model=model, config=model.config)
        except Exception as error:  # operations fail in their own ways on shapes that they do not expect
            text = " ".join(str(error).split())[:200]
            raise ModelError(f"{self.names[0]} cannot be converted into {self.targets[0]}: {text}") from None
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def groups_of(model: PreTrainedModel, checkpoint: Checkpoint) -> list[Group]:
    """What each parameter and buffer of `model` (on the meta device) is made of, as transformers would load it.

    Tensors that the model has no use for are in no group.
    """
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    prefix, state = model.base_model_prefix, model.state_dict()
    found: dict[str, tuple[WeightConverter | None, dict[str, list[str]]]] = {}
    for name in sorted(checkpoint, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], base_model_prefix=prefix, meta_state_dict=state)
        if target in state:
            converter = None if pattern is None else by_pattern[pattern]
            sources = found.setdefault(target, (converter, {}))[1]
            sources.setdefault(pattern or name, []).append(name)
    return [Group(entry, _targets(entry, first), sources) for first, (entry, sources) in found.items()]


def _targets(converter: WeightConverter | None, first: str) -> tuple[str, ...]:
    if converter is None:
        return (first,)
    own = converter.target_patterns[0]
    return tuple(first.replace(own, other) for other in converter.target_patterns)


def _keeps_first(operation: ConversionOps) -> bool:
    """Whether an operation treats each entry of a stacked tensor's first dimension alike and apart."""
    if isinstance(operation, Transpose):
        return not operation.check_dims and operation.dim0 > 0 and operation.dim1 > 0
    if isinstance(operation, Concatenate | Chunk):
        return operation.dim > 0 and operation.num_shards_attribute is None
    return isinstance(operation, Interleave) and operation.dim > 0
