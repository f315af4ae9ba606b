"""What the one who imports knows and the file does not say."""

from dataclasses import dataclass, fields
from pathlib import Path

from tracekit.errors import ImportFormatError
from tracekit.manifest import MAX_EXPERTS, MAX_LAYERS, MAX_TOP_K

_FLAGS = {"rows_as": "--as"}


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Facts given beside the file; None where the file says it or it must be inferred."""

    model: str | None = None
    experts: int | None = None
    layers: int | None = None
    top_k: int | None = None
    request_field: str | None = None
    """The field of a line log that tells requests apart; "none" where no field does."""
    drop_slot: tuple[int, ...] = ()
    """Slots of every choice that no gate chose."""
    rows_as: str | None = None
    """"decode": rows that went through the model at once are taken as generated one by one; "prefill": as they were."""
    tokenizer: Path | None = None
    """A tokenizer.json, or a directory with one: ids for the texts of tokens."""

    def check(self, format_name: str, understood: tuple[str, ...]) -> None:
        """Raise ImportFormatError for a number out of range, or an option that the format has no use for."""
        limits = {"experts": MAX_EXPERTS, "layers": MAX_LAYERS, "top_k": MAX_TOP_K}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or value == ():
                continue
            flag = _FLAGS.get(field.name, "--" + field.name.replace("_", "-"))
            if field.name not in understood:
                known = ", ".join(_FLAGS.get(name, "--" + name.replace("_", "-")) for name in understood)
                raise ImportFormatError(
                    f"{format_name} files say that themselves: leave {flag} out (understood: {known})"
                )
            if field.name == "rows_as" and value not in ("decode", "prefill"):
                raise ImportFormatError(f"--as is {value!r}, expected decode or prefill")
            if field.name in limits and not 1 <= value <= limits[field.name]:
                raise ImportFormatError(f"{flag} is {value}, expected 1 to {limits[field.name]}")
