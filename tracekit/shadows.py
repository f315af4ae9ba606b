"""Whether `engine`, `policies` and `experiments` are ours: such names are generic, and a user may have taken one."""

from importlib.util import find_spec
from pathlib import Path

from tracekit.errors import TracekitError

PACKAGES = ("policies", "engine", "experiments")


def check_shadows() -> None:
    """Raise TracekitError if Python finds another package or module under the name of one of ours, or none."""
    home = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        spec = find_spec(name)
        places = [] if spec is None else [*(spec.submodule_search_locations or [spec.origin or name])]
        if not places:
            raise TracekitError(
                f"the package {name} of moe-tracekit is not beside {home / 'tracekit'}: install it again"
            )
        if Path(places[0]).resolve() != home / name:
            raise TracekitError(
                f"{places[0]} hides the package {name} of moe-tracekit, which is in {home}: rename yours, or keep its "
                "folder off sys.path (PYTHONPATH, and where python -m and scripts start)"
            )
