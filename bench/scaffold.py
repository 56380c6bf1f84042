"""`bench new`: a plugin's file to start from, which runs at once and says what is still missing."""

import keyword
import re
from pathlib import Path

import click

from bench import registry, taxonomy

TEMPLATE = '''"""{title}: TODO say in one sentence what the method does.

TODO: the formula it rests on, with the number it has in the paper. Until then this is Euler's step on the
probability flow: in z = x / alpha against r = sigma / alpha the flow is dz/dr = eps, so from time s to t < s

    x_t = (alpha_t / alpha_s) x_s + (sigma_t - alpha_t sigma_s / alpha_s) eps(x_s, s).
"""

from itertools import pairwise

from torch import Tensor

from bench.diffusion.denoiser import Denoiser
from bench.method import Method


class {class_name}(Method):
    """{title}"""  # its name in tables

    # What is not annotated is a declaration: a literal, read without running this file.
    paper = "{paper}"
{leaf}    order = 1  # of convergence, measured by `bench check`; leave it out for a method that draws noise
    # Others: schedules, kinds, least (evaluations it needs), likelihood; bench/method.py explains them.

    # What is annotated is a hyper-parameter, with the paper's default: `bench run {name}:spacing=time`.
    spacing: str = "lambda"

    def sample(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        """x (N, *shape) is the noise at t_max; what is returned has the shape of the data."""
        alpha, sigma = denoiser.schedule.alpha, denoiser.schedule.sigma
        # nfe is the number of times each sample may pass the network. It is counted, and enforced.
        for s, t in pairwise(denoiser.schedule.steps(nfe, self.spacing)):
            eps = denoiser(x, s).eps  # one evaluation; it also has .x0, .score and .v
            # TODO: your step instead of this one.
            x = alpha(t) / alpha(s) * x + (sigma(t) - alpha(t) * sigma(s) / alpha(s)) * eps
        return x

    # A method with a likelihood has nll(self, denoiser, x, nfe), nats a row, and says likelihood = "elbo" or
    # "ode". One with a model of its own has build and train, and keeps what it learns in its tensors.
'''


def new(leaf: str, method: str, paper: str, out: Path | None = None) -> Path:
    """Write the file of a new plugin and return its path: into the leaf's folder of the zoo, or into `out`,
    where the file names its leaf itself. click.BadParameter or ClickException for what cannot be done.
    """
    place = taxonomy.load().leaf(leaf)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", method) or keyword.iskeyword(method):
        raise click.BadParameter(
            f"{method!r} is no name for a method: write it in snake case, such as dpmpp_2m."
        )
    if not re.fullmatch(r"arXiv:\d{4}\.\d{4,5}", paper):
        raise click.BadParameter(f"{paper!r} is no paper: give its number as arXiv:2010.02502.")
    if out is None:
        checkout = (registry.ZOO.parent / "pyproject.toml").exists()
        if not checkout or place.folder is None:
            why = f"{place.title} has no folder in the zoo yet" if checkout else "this is not a checkout"
            raise click.BadParameter(f"{why}: say with --out DIR where the file should go.")
        if method in registry.plugins():
            raise click.ClickException(
                f"there is a method {method} already: {registry.plugins()[method].path}."
            )
    path = (out or registry.ZOO / place.folder) / f"{method}.py"
    words = method.split("_")
    text = TEMPLATE.format(
        title=" ".join(words),
        name=method,
        class_name="".join(word.capitalize() for word in words),
        paper=paper,
        leaf=f'    leaf = "{place.id}"  # its place in the taxonomy, as it lies outside the zoo\n'
        if out
        else "",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise click.ClickException(f"{path} exists; choose another name or remove it first.") from None
    return path
