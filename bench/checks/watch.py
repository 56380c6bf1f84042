"""Two looks over a method's shoulder while it samples: does it use a network outside its counter, and what
does it draw when all batches get the same noise.
"""

from torch import Tensor, nn, rand, randn
from torch.overrides import TorchFunctionMode

from bench.diffusion.counting import Counted, counters
from bench.running.worker import uncounted


class Watch(TorchFunctionMode):
    """Sees every torch function, and with it any use of a counted network's tensors outside that network's
    counted call, whatever the way round: its inner module, its forward, a copy, its weights.
    """

    def __init__(self, model: nn.Module, rows: int):
        super().__init__()
        self.model, self.rows = model, rows
        self.depth = self.passed = 0
        self.seen: str | None = None  # the first thing done behind the counter's back
        self.owned = {id(t) for c in counters(model) for t in (*c.net.parameters(), *c.net.buffers())}
        self.hooks = []

    def __enter__(self):
        inside = {id(m) for c in counters(self.model) for m in c.net.modules()}
        for name, module in self.model.named_modules():
            if isinstance(module, Counted):
                self.hooks.append(module.register_forward_pre_hook(self.enter))
                self.hooks.append(module.register_forward_hook(self.leave, always_call=True))
            elif id(module) not in inside and uncounted(module) and any(True for _ in module.parameters()):
                self.hooks.append(module.register_forward_pre_hook(self.uncounted(name)))
        return super().__enter__()

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()
        return super().__exit__(*error)

    def enter(self, module, inputs) -> None:
        self.depth += 1
        self.passed += len(inputs[0])

    def leave(self, module, inputs, output) -> None:
        self.depth -= 1

    def uncounted(self, name: str):
        def see(module, inputs) -> None:
            wide = any(isinstance(a, Tensor) and a.ndim > 1 and len(a) >= self.rows for a in inputs)
            if wide and not self.depth and not self.seen:
                self.seen = f"it calls {name or 'its model'}, a network that no Counted holds"

        return see

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if self.depth or self.seen or not isinstance(out, Tensor):
            return out
        if any(id(t) in self.owned for t in flat((args, tuple((kwargs or {}).values())))):
            self.seen = "it uses the inside of a counted network, which then counts nothing"
        return out


def flat(nested):
    """The tensors in nested lists and tuples."""
    for item in nested:
        if isinstance(item, list | tuple):
            yield from flat(item)
        elif isinstance(item, Tensor):
            yield item


class CommonNoise(TorchFunctionMode):
    """Row i of the c-th draw of noise is the same however many rows are drawn: it is drawn for `most` rows
    and cut. `other` says what was drawn in a way that has no such rows.
    """

    OTHER = [
        "normal",
        "normal_",
        "uniform_",
        "bernoulli",
        "bernoulli_",
        "multinomial",
        "randint",
        "randint_like",
        "randperm",
        "exponential_",
        "poisson",
        "cauchy_",
        "geometric_",
        "log_normal_",
        "random_",
    ]

    def __init__(self, rows: int, most: int):
        super().__init__()
        self.rows, self.most, self.other = rows, most, None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in ("randn_like", "rand_like"):
            if args[0].ndim and len(args[0]) == self.rows:
                draw = {"randn_like": randn, "rand_like": rand}[name]
                options = {"dtype": args[0].dtype, "device": args[0].device} | kwargs
                return draw(self.most, *args[0].shape[1:], **options)[: self.rows]
            self.other = f"{name} on some of the rows"
        elif name in ("randn", "rand"):
            given = args if args else (kwargs.get("size", ()),)
            shape = tuple(given[0]) if given and isinstance(given[0], list | tuple) else tuple(given)
            options = {key: value for key, value in kwargs.items() if key != "size"}
            if shape and shape[0] == self.rows:
                return func(self.most, *shape[1:], **options)[: self.rows]
        elif name in self.OTHER:
            self.other = name
        return func(*args, **kwargs)
