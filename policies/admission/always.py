"""Everything is admitted."""

from policies.admission.base import Admission


class AlwaysAdmit(Admission):
    """Keeps what is missed wherever there is room."""

    name = "always"
    summary = "every missing expert that there is room for"
