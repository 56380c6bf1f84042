"""Workers for `executors` on a Ray cluster: actors, which borrow from this machine's cache."""

import socket
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import click

from bench.cache import Shelf, cache_dir
from bench.running.crews import UP, Died, Hand, answered

LOOK = 2.0  # seconds between two looks at the nodes of a cluster
KNOCK = 5.0  # seconds in which the address of a cluster must answer


class Actors:
    """Actors on the nodes of a Ray cluster. Their functions take a task and a lender: this machine's cache.

    cpus, gpus: what each takes of its node. most: how many there are at most. Raises click.ClickException
    where Ray is not installed, no cluster is reachable, or no node has room for one of them.
    """

    hint = "taxobench must be installed alike on every node"

    def __init__(self, address: str | None, cpus: float, gpus: float, most: int | None):
        self.ray, self.ours, home = connected(address)
        self.needs, self.most = {"CPU": cpus, "GPU": gpus}, most
        self.looked, self.seen = 0.0, 0
        if not self.room():
            self.close()
            needs = f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
            raise click.ClickException(f"no node of the Ray cluster has {needs}: ask for less, or add one.")
        for_ever = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": home}
        self.lender = self.ray.remote(**for_ever)(Shelf).remote(str(cache_dir()))
        self.labourer = self.ray.remote(num_cpus=cpus, num_gpus=gpus)(Labourer)

    def room(self) -> int:
        """As many as fit on the nodes that are alive now."""
        if (now := time.monotonic()) - self.looked > LOOK or not self.looked:
            have = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
            fit = [min(int(one.get(k, 0) // n) for k, n in self.needs.items() if n) for one in have]
            self.looked, self.seen = now, sum(fit)
        return min(self.seen, self.most or self.seen)

    def hire(self, place: int, function: Callable) -> Hand:
        return Actor(self.ray, self.labourer.remote(self.lender), function)

    def wait(self, hands: Sequence[Hand], seconds: float | None) -> None:
        refs = [hand.refs[0] for hand in hands if hand.refs]
        self.ray.wait(refs, timeout=LOOK if seconds is None else min(seconds, LOOK))

    def close(self) -> None:
        if self.ours:
            self.ray.shutdown()
        elif hasattr(self, "lender"):
            self.ray.kill(self.lender)


class Actor:
    """An actor that answers in the order in which it was asked."""

    def __init__(self, ray: Any, labourer: Any, function: Callable):
        self.ray, self.labourer = ray, labourer
        self.refs = [labourer.up.remote(function)]

    def send(self, function: Callable, task: object) -> None:
        self.refs.append(self.labourer.answer.remote(function, task))

    def answers(self) -> list:
        found = []
        while self.refs and self.ray.wait(self.refs[:1], timeout=0)[0]:
            try:
                found.append(self.ray.get(self.refs[0]))
            except self.ray.exceptions.RayError as error:
                if found:
                    return found  # the rest is for the next time
                raise Died(str(error).strip().splitlines()[0]) from None
            self.refs.pop(0)
        return found

    def kill(self) -> None:
        self.ray.kill(self.labourer)


class Labourer:
    """What an actor is: a process on some node, which answers, and borrows what its cache lacks."""

    def __init__(self, lender: Any):
        import ray

        self.lender = SimpleNamespace(
            fetch=lambda name: ray.get(lender.fetch.remote(name)),
            keep=lambda *words: ray.get(lender.keep.remote(*words)),
        )

    def up(self, _: Callable) -> str:
        return UP

    def answer(self, function: Callable, task: object) -> tuple[bool, object]:
        return answered(function, task, self.lender)


def connected(address: str | None) -> tuple[Any, bool, Any]:
    """Ray, whether it was we who connected, and where an actor must be to be on this node."""
    try:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    except ImportError:
        raise click.ClickException("Ray is not installed: pip install 'taxobench[ray]'.") from None
    if (address or "").startswith("ray://"):
        raise click.BadParameter(
            "a run drives Ray from a node of the cluster: give HOST:PORT, and not ray://."
        )
    ours = not ray.is_initialized()
    if ours:
        try:
            knock_at(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        except (OSError, ValueError, RuntimeError, OverflowError) as error:
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            where = address or "this machine"
            raise click.ClickException(f"no Ray cluster answers at {where}: {why}") from None
    return ray, ours, NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def knock_at(address: str | None) -> None:
    """`OSError` where nothing listens at HOST:PORT, for which Ray would wait minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK).close()
