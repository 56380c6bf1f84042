"""How networks are run: in which precision, and compiled or not.

A precision has a name and is part of the protocol, because numbers depend on it; compiling moves a sample as
little as another micro-batch does. Whatever is not a network (schedules, steps, metrics) stays as it is.
"""

import ctypes
import logging
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

# torch itself calls what it warns of, at the first forward-mode derivative.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)

# fp32: IEEE single precision. tf32: the same, but a GPU's matrix products and convolutions read ten bits of
# mantissa. bf16: autocast, products and convolutions in bfloat16, norms and sums in fp32, weights in fp32.
PRECISIONS = ("fp32", "tf32", "bf16")
OLD = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 15)
COMPILED_FOR = 2  # numbers of rows: each costs up to a minute, and what a method asks for may be any


@dataclass(frozen=True)
class Execution:
    """The form in which a network is evaluated; the default is the network as it is."""

    precision: str = "fp32"
    compiled: bool = False

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"no precision {self.precision!r}; there are {', '.join(PRECISIONS)}")

    def evaluate(self, net: nn.Module, *inputs) -> Tensor:
        """net(*inputs), a tensor. In bf16 the output returns to float32, and torch.func's transforms (the
        derivatives of likelihoods) stay in fp32 throughout: autocast does not reach inside them.
        """
        if transformed():
            with differentiable(net):
                return net(*inputs)
        if self.precision != "bf16":
            return net(*inputs)
        with mixed(self.precision, inputs[0].device.type):
            out = net(*inputs)
        return out.float() if out.dtype is torch.bfloat16 else out


PLAIN = Execution()


def transformed() -> bool:
    """Whether this is evaluated under one of torch.func's transforms."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # torch has no public way to ask


@contextmanager
def differentiable(net: nn.Module) -> Iterator[None]:
    """Let a torch before 2.15 carry tangents through group norms: there they have to lie in memory row by
    row, and a convolution may leave them channels last.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.GroupNorm)] if OLD else []
    relaid = lambda module, inputs: tuple(x.clone(memory_format=torch.contiguous_format) for x in inputs)
    hooks = [norm.register_forward_pre_hook(relaid) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def mixed(precision: str, device: str) -> torch.autocast:
    """Autocast to bfloat16 inside the block where that is the precision; otherwise it changes nothing."""
    return torch.autocast(device.split(":")[0], torch.bfloat16, enabled=precision == "bf16")


def unfit(precision: str, device: str) -> str | None:
    """Why this precision cannot be had on this device, in one sentence; None where it can."""
    if precision == "tf32" and not device.startswith("cuda"):
        return "tf32 is a precision of NVIDIA's GPUs; on a CPU give fp32 or bf16."
    return None


def slow(precision: str, device: str) -> str | None:
    """Why this precision is slower on this device than fp32, in one sentence; None where it is not, and where
    torch cannot tell.
    """
    if precision != "bf16" or device != "cpu":
        return None
    able = getattr(torch.cpu, "get_capabilities", dict)()
    if able.get("architecture") != "x86_64" or able.get("avx512_bf16") or able.get("amx_bf16"):
        return None
    return "this processor imitates bf16, at about a tenth of the speed of fp32"


def settle(precision: str, device: str) -> tuple[bool, bool]:
    """Let this process's GPU have TF32 where that is the precision and only there: torch's own default is
    TF32 in convolutions. Returns what was allowed before, to convolutions and to products.
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    if not device.startswith("cuda"):
        return False, False
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = precision == "tf32"
    return before


@contextmanager
def arithmetic(precision: str, device: str) -> Iterator[None]:
    """`settle` for the length of a block."""
    before = settle(precision, device)
    try:
        yield
    finally:
        if device.startswith("cuda"):
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@lru_cache(maxsize=1)
def keep_memory() -> None:
    """Let this process keep the memory it frees, up to 256 MiB, for what it needs next. A network asks for
    the same activations again and again, and where glibc fetches them from the system each time, a fault
    for each of their pages costs up to a third of the time.
    """
    trim_threshold, mmap_threshold = -1, -3  # names of malloc.h
    with suppress(AttributeError, OSError, TypeError):  # another C library has its own ways
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 256 << 20)


def placed(model: nn.Module, device: str) -> nn.Module:
    """The model on its device; on a GPU with channels last, which is how tensor cores read images. Values
    and names of its tensors are the same.
    """
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if device.startswith("cuda") else model


def can_compile(device: str) -> bool:
    """Whether there is a compiler: on a CPU torch needs the one of C++ that it would call."""
    usual = "clang++" if sys.platform == "darwin" else "g++"
    return device != "cpu" or shutil.which(os.environ.get("CXX", usual)) is not None


@lru_cache(maxsize=1)
def keep_to_itself() -> None:
    """Let torch compile in this process alone, which is one of as many as there are cores, leave no lock
    behind where it is killed, and say nothing of a CUDA toolkit on a machine without a GPU.
    """
    import torch._inductor.config as inductor
    from tqdm import tqdm

    inductor.compile_threads = 1
    tqdm.set_lock(threading.RLock())  # torch's progress bars would make one that processes share
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def compiled(net: nn.Module, device: str) -> Callable[..., Tensor]:
    """The network compiled for the first numbers of rows it is called with, on a GPU into CUDA graphs; the
    network itself for others, and, with a warning, where it cannot be compiled. No module of `net` is
    changed, and outputs are the caller's.

    For evaluations without derivatives: torch's compiled code has no forward mode and no second derivative.
    """
    if device == "cpu":
        keep_to_itself()
    graph = torch.compile(net, dynamic=False, mode="reduce-overhead" if "cuda" in device else None)
    sound, known = True, set()

    def run(*inputs) -> Tensor:
        nonlocal sound
        if len(known) < COMPILED_FOR:
            known.add(len(inputs[0]))
        if sound and len(inputs[0]) in known:
            try:
                out = graph(*inputs)
                return out.clone() if out.is_cuda else out  # a graph's next replay writes over its output
            except torch._dynamo.exc.TorchDynamoException as error:
                sound = False
                reason = str(error).strip().partition("\n")[0]
                warnings.warn(f"a network runs as it is, for it cannot be compiled: {reason}", stacklevel=2)
        return net(*inputs)

    return run
