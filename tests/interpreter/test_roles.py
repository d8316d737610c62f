"""The order in which roles of warps go on: in turn, and one of them late in most programs."""

from typing import Any

import pytest

from fuzzrope.interpreter.warps import DeadlockError, Warps


class Machine(Warps):
    """What roles need of a machine: a program's number, and its name."""

    def __init__(self, number: int):
        self.first = number
        self.watch_warps()

    def program(self, lane: int) -> str:
        return f"program {self.first + lane}"


def ran(machine: Any, waits: int = 2) -> list[int]:
    """Roles by number, as three of them take turns that each get somewhere so many times."""
    order: list[int] = []

    def role(number: int):
        for _ in range(waits):
            order.append(number)
            machine.steps += 1
            yield
        order.append(number)
        return number

    assert machine.roles([lambda number=number: role(number) for number in (1, 2, 3)]) == 1
    return order


@pytest.mark.parametrize(
    ("program", "order"),
    [
        (0, [1, 2, 3, 1, 2, 3, 1, 2, 3]),
        (1, [2, 3, 2, 3, 2, 3, 1, 1, 1]),
        (2, [1, 3, 1, 3, 1, 3, 2, 2, 2]),
        (3, [1, 2, 1, 2, 1, 2, 3, 3, 3]),
        (4, [1, 2, 3, 1, 2, 3, 1, 2, 3]),
    ],
)
def test_in_most_programs_a_role_goes_on_only_where_no_other_can(program, order):
    assert ran(Machine(program)) == order


def test_where_no_role_gets_anywhere_they_wait_for_ever():
    class Site:
        def text(self) -> str:
            return "here"

    machine: Any = Machine(2)

    def stuck():
        machine.role.waits = Site()
        while True:
            yield

    with pytest.raises(DeadlockError, match="program 2 waits for ever: here"):
        machine.roles([stuck, stuck])
