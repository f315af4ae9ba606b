"""Each case of a long test has its turn, and only one."""

from tests.helpers.long import PARTS, functions, is_left_out, part_of


def test_every_case_has_one_turn() -> None:
    long = frozenset({"tests/a.py::test_x"})
    cases = [f"tests/a.py::test_x[{number}]" for number in range(100)]
    taken = [{case for case in cases if not is_left_out(case, part, long)} for part in range(PARTS)]
    assert sum(map(len, taken)) == len(set().union(*taken)) == len(cases)
    assert all(len(part) > 10 for part in taken)
    assert not any(is_left_out("tests/a.py::test_xy[1]", part, long) for part in range(PARTS))
    assert {part_of(f"{number:08x}" + "0" * 32) for number in range(16)} == set(range(PARTS))


def test_what_is_named_is_of_these_tests() -> None:
    assert all(name.startswith("tests/") and "::test_" in name and "[" not in name for name in functions())
