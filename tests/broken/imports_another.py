"""Broken: borrows from another plugin."""

from bench.method import Method
from zoo.sampling_acceleration.ode_solver.ddim import DDIM


class ImportsAnother(Method):
    """Imports another plugin"""

    paper = "arXiv:2010.02502"
    leaf = "ode_solver"

    def sample(self, denoiser, x, nfe: int):
        return DDIM().sample(denoiser, x, nfe)
