"""Broken: knows the runner, and the machine it runs on."""

import os

from bench.method import Method
from bench.running import runner


class ImportsRunner(Method):
    """Imports the runner"""

    paper = "arXiv:2010.02502"
    leaf = "ode_solver"

    def sample(self, denoiser, x, nfe: int):
        return denoiser(x, denoiser.schedule.t_max).x0 * len(os.sep) * bool(runner)
