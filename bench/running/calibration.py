"""The tolerance of an adaptive method for a budget, found once a cell."""

import math
from dataclasses import replace

from bench.diffusion.counting import OverBudget
from bench.job import Cell
from bench.running.worker import Ready, Site, ask

CALIBRATION = 1 << 20  # the number of the calibration chunk: none that is measured
LOOSEST = 100.0
ANY = 1e9  # a tolerance at which no step is refused


def calibrate(asked: Ready, cell: Cell, site: Site) -> tuple[float, int]:
    """The tolerance at which an adaptive method spends just under 0.97 of the budget, and the rows that
    finding it took.

    Found by bisection on a small chunk of noise that is not measured, and held on whole ones: how many steps
    a chunk takes is a matter of its samples. At a method's least budget even one refused step is one too
    many, so where the loosest tolerance spends more than 0.97 of it, none is refused.
    """
    small = replace(cell, chunk=min(cell.chunk, 100))
    spent = 0

    def cost(log_tolerance: float, of: Cell, number: int) -> float:
        """Evaluations a sample; infinite beyond twice the budget."""
        nonlocal spent
        limit = 2 * of.nfe * of.chunk
        try:
            _, chunk = ask(asked, of, CALIBRATION + number, site, math.exp(log_tolerance), allowance=limit)
        except OverBudget:
            spent += limit
            return math.inf
        spent += chunk.rows
        return chunk.rows / chunk.n

    low, high = _, loosest = math.log(1e-7), math.log(LOOSEST)
    if cost(high, small, 0) > 0.97 * cell.nfe:
        if cost(math.log(ANY), small, 0) > cell.nfe:
            raise OverBudget(f"it takes more than {cell.nfe} evaluations a sample at any tolerance")
        return ANY, spent
    for _ in range(9):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(middle, small, 0) <= 0.97 * cell.nfe else (middle, high)
    while high < loosest and (cost(high, cell, 1) + cost(high, cell, 2)) / 2 > cell.nfe:
        high += 0.3
    return math.exp(high), spent
