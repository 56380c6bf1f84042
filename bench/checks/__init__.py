"""The checks of `bench check`, by what they look at. Each takes a Subject and returns one sentence of what it
found; what is wrong raises `Wrong`, what cannot be asked raises `Skip`, both with one sentence.
"""


class Wrong(Exception):
    """The plugin does not do what it says; the message says what to do."""


class Skip(Exception):
    """The check does not apply; the message says why."""
