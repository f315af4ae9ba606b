"""What the one who imports knows and the file does not say."""

from dataclasses import dataclass, fields

from tracekit.errors import ImportFormatError
from tracekit.manifest import MAX_EXPERTS, MAX_LAYERS, MAX_TOP_K


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

    def check(self, format_name: str, understood: tuple[str, ...]) -> None:
        """Raise ImportFormatError for a number out of range, or an option that the format has no use for."""
        limits = {"experts": MAX_EXPERTS, "layers": MAX_LAYERS, "top_k": MAX_TOP_K}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or value == ():
                continue
            flag = "--" + field.name.replace("_", "-")
            if field.name not in understood:
                known = ", ".join("--" + name.replace("_", "-") for name in understood)
                raise ImportFormatError(
                    f"{format_name} files say that themselves: leave {flag} out (understood: {known})"
                )
            if field.name in limits and not 1 <= value <= limits[field.name]:
                raise ImportFormatError(f"{flag} is {value}, expected 1 to {limits[field.name]}")
