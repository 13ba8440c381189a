"""The part of a node list that an edit runs, for every method on every grid.

The first trap of REFERENCE, section 9.
"""

import numpy as np
import pytest

from ddim.base.errors import InputError
from ddim.noise.foreign import FOREIGN_NODES
from ddim.noise.nodes import NODES
from ddim.noise.schedule import Schedule
from ddim.samplers.lookup import METHODS
from ddim.samplers.methods.grid import Grid
from ddim.samplers.sampler import Sampler, make_tableau

SCHEDULE = Schedule.linear(120, 1e-3, 0.15)
START_UP = {
    "ddim": 0,
    "ddpm": 0,
    "pf-euler": 0,
    "diffusers-ddim": 0,
    "heun": 0,
    "dpm-solver-2": 0,
    "dpm-solver-3": 0,
    "sde-dpmpp": 1,
    "gradient-estimation": 1,
    "bdia": 1,
    "obelm": 1,
    "edict": 1,
    "deis": 2,
    "dpmpp": 2,
    "plms": 3,
    "unipc": 6,
    "diffusers-pndm": 5,
}
"""Rows of a tail that may differ from the whole's: those that would read what was not yet there."""


def numbers(tableau, last):
    """The coefficients of the last rows, their indices counted from the table's end."""
    end = len(tableau.initial) + len(tableau.rows)
    return [
        (
            [[(i - end, a) for i, a in terms] for terms in (row.states, row.x0, row.eps)],
            (row.level, row.at, row.k, row.noise, row.noise_max),
        )
        for row in tableau.rows[len(tableau.rows) - last :]
    ]


@pytest.mark.parametrize("family", [*NODES, *FOREIGN_NODES])
@pytest.mark.parametrize("method", START_UP)
def test_trap_a_tail_has_the_rows_of_the_whole(method, family):
    """A stride, a start-up or the order of the last steps must not be those of another list."""
    highest = {"order": 3} if "order" in METHODS[method].options else {}
    for steps in (10, 20):
        sampler = Sampler(method, steps, family, **highest)
        if method == "diffusers-ddim" and family.startswith("nngen"):
            return  # ends at node 1, which that method refuses
        whole = sampler.tableau(SCHEDULE)
        for strength in (0.35, 0.6, 0.9):
            tail = sampler.starting(strength, SCHEDULE).tableau(SCHEDULE)
            assert tail.initial[0].k == tail.initial[0].at.t + 1 < SCHEDULE.T
            kept = len(tail.rows) - START_UP[method]
            assert numbers(tail, kept) == numbers(whole, kept)


def test_every_method_of_a_schedule_is_here():
    drawn = {name for name, method in METHODS.items() if method.needs is None}
    ours = {name for name in drawn if METHODS[name].build.__module__.startswith("ddim.")}
    assert ours == {*START_UP, "restart"}


def test_the_tail_of_a_tail_and_its_spelling():
    sampler = Sampler("diffusers-ddim", 12, "diffusers-trailing")
    part = sampler.starting(0.5, SCHEDULE)
    assert str(part) == "diffusers-ddim:of=12:nodes=60-50-40-30-20-10-0"
    assert Sampler.parse(str(part)) == part
    nodes = part.place(SCHEDULE)
    assert part.tail(nodes, 2) == Sampler("diffusers-ddim", of=12, nodes=nodes[2:])
    assert sampler.starting(1.0, SCHEDULE).options["of"] is None
    assert part.tableau(SCHEDULE).options["of"] == 12


def test_few_steps_of_a_long_list_keep_their_order():
    """Below 15 steps the last but one has order 2; twelve that end a list of thirty have 3."""
    sampler = Sampler("dpmpp", 30, order=3)
    whole = sampler.tableau(SCHEDULE)
    tail = sampler.starting(0.4, SCHEDULE).tableau(SCHEDULE)
    alone = make_tableau(
        SCHEDULE, [row.k for row in (tail.initial[0], *tail.rows)], "dpmpp:order=3"
    )
    assert len(tail.rows) == 12
    assert [len(t.rows[-2].x0) for t in (whole, tail, alone)] == [3, 3, 2]


def test_restart_stays_within_the_part():
    """Where an edit begins below its upper end it goes back to where it began, not above."""
    sampler = Sampler("restart", 20, low=0.1, high=0.7)
    part = sampler.starting(0.4, SCHEDULE).tableau(SCHEDULE)
    assert max(row.k for row in part.rows) == part.initial[0].k == 48
    above = sampler.starting(0.9, SCHEDULE).tableau(SCHEDULE)
    rows = len(above.rows)
    assert numbers(above, rows) == numbers(sampler.tableau(SCHEDULE), rows)


def test_a_list_is_no_shorter_than_its_end():
    with pytest.raises(InputError, match="these 3 steps cannot be the end of a list of 2"):
        Grid(SCHEDULE, (30, 20, 10, 0), of=2)
    assert np.isfinite(Grid(SCHEDULE, (30, 20, 10, 0), of=3).rhos).all()
