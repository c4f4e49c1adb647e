"""The fault matrix names tests that there are."""

import re
from pathlib import Path

import pytest
from faults import FAULTS

TESTS = {
    name
    for path in Path(__file__).parent.glob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
}


@pytest.mark.parametrize("number", FAULTS)
def test_a_fault_has_tests_or_a_reason_why_not(number: int) -> None:
    fault = FAULTS[number]
    assert bool(fault.tests) != bool(fault.why_not)
    assert set(fault.tests) <= TESTS, "tests that there are not"


def test_no_fault_of_the_matrix_is_left_out() -> None:
    assert set(FAULTS) == set(range(1, 49)) - {33, 45}  # which the matrix does not have
