"""Sequences of tokens: `markov`, a Markov chain whose truth is known, and `text:FILE`, anybody's text."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.data import Data, refuse_strange
from bench.data.exact import ExactData
from bench.data.folder import HELD_OUT

if TYPE_CHECKING:
    from torch import Tensor

    from bench.diffusion.markov import MarkovChain

LENGTH = 32
LETTERS = " abcdefghijklmnopqrstuvwxyz"  # token k is the k-th
SHARPNESS, SEED = 2.5, 27  # of the chain's transition matrix


class ChainData(ExactData):
    """A known chain as a data set: always the same sequences, drawn when first asked for."""

    def __init__(self, name: str, exact: MarkovChain):
        super().__init__(name, "tokens", (exact.length,), exact)
        vars(self).update(levels=exact.levels)

    def _draw(self, n: int, seed: int) -> Tensor:
        import torch

        return self.exact.sample(n, torch.Generator().manual_seed(seed)).to(torch.uint8)


def load(name: str) -> Data:
    """`markov`, or `text:FILE`; click.ClickException where FILE cannot be read or is too short."""
    _, colon, path = name.partition(":")
    return read(name, Path(path).expanduser()) if colon else ChainData(name, chain())


@lru_cache
def chain() -> MarkovChain:
    """27 letters, sequences of 32."""
    from bench.diffusion.markov import MarkovChain, peaked

    return MarkovChain(peaked(len(LETTERS), SHARPNESS, SEED), LENGTH)


def read(name: str, path: Path) -> Data:
    """A text in sequences of 32 tokens, 27 levels: its letters a to z in lower case, and a space for every
    run of anything else. The last tenth is held out; what is left over at the end is dropped.
    """
    import re

    import torch

    refuse_strange(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise click.ClickException(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{path} cannot be read as UTF-8 text ({error})") from None
    plain = re.sub(r"[^a-z]+", " ", text.lower()).encode()
    codes = torch.frombuffer(bytearray(plain or b" "), dtype=torch.uint8)
    tokens = torch.where(codes == ord(" "), 0, codes.int() - ord("a") + 1).to(torch.uint8)
    rows = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)
    if len(rows) < 100:
        raise click.ClickException(
            f"{path} holds {len(plain):,} letters and spaces: a text of {100 * LENGTH:,} or more is needed"
        )
    edge = len(rows) - round(HELD_OUT * len(rows))
    return Data(name, "tokens", (LENGTH,), train=rows[:edge], test=rows[edge:], levels=len(LETTERS))
