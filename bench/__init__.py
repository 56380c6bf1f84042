"""The benchmark harness: runs the zoo's methods at matched, measured NFE and tells which differences are
real.
"""

__version__ = "0.1.0"
__all__ = ["rows", "run"]


def __getattr__(name: str):
    """`bench.run` and `bench.rows`, imported when asked for: `bench --help` must not pay for torch."""
    if name == "run":
        from bench.running.runner import run

        return run
    if name == "rows":
        from bench.store import frame

        return frame
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
