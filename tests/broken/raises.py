"""Broken: leaves the process in the middle of sampling."""

import sys

from bench.method import Method


class Raises(Method):
    """Raises"""

    paper = "arXiv:2010.02502"
    leaf = "ode_solver"

    def sample(self, denoiser, x, nfe: int):
        sys.exit("enough")
