"""What sampling must keep to: shape, budget, the counter, seeds, batches, its input, its state."""

import copy
import math
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.checks import Skip, Wrong
from bench.checks.subject import EXACT, ROWS, Subject, again, drawn, fresh_class, make, sentence, start
from bench.checks.watch import CommonNoise, Watch
from bench.diffusion.counting import OverBudget, counters, counting
from bench.job import Cell
from bench.models import kept
from bench.running.calibration import calibrate
from bench.running.worker import SLACK, Ready, Site

CLOSE = 1e-4  # of the samples' range: what micro-batches may change


def budgets(subject: Subject) -> list[int]:
    least = subject.plugin.least
    if subject.cls.adaptive:  # each is a search for its tolerance
        return [least, max(25, least)]
    return sorted({*range(least, least + 4), max(10, least), max(25, least)})


def far(a: Tensor, b: Tensor) -> float:
    """The largest difference, in units of the range of b; infinite where one is no number."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.double(), b.double()
    gap = float((a - b).abs().max() / (b.max() - b.min()).clamp(min=1e-12))
    return gap if gap == gap else float("inf")


def samples(subject: Subject) -> str:
    """Shape, dtype and finiteness at every budget from the least up, on each kind, under each schedule."""
    subject.needs("sample")
    asks = [(kind, subject.schedules[0], nfe) for kind in subject.kinds for nfe in budgets(subject)]
    asks += [(subject.kind, schedule, budgets(subject)[i]) for schedule in subject.schedules for i in (0, -1)]
    if "train" in subject.plugin.abilities:  # each is a training of its own
        asks = [
            ask for ask in asks if ask[1] == subject.schedules[0] and (ask[0] == subject.kind or ask[2] == 10)
        ]
    for kind, schedule, nfe in dict.fromkeys(asks):
        where = f"at {nfe} NFE on {EXACT[kind]} under {schedule}"
        asked = subject.asked(kind, schedule, nfe)
        try:
            found = drawn(asked, nfe)
        except OverBudget:
            continue  # for the budget's check to say
        except Exception as error:
            raise Wrong(f"{where} it stops with {sentence(error)}.") from None
        if not isinstance(found.samples, Tensor):
            raise Wrong(f"{where} sample returns a {type(found.samples).__name__} and not a tensor.")
        wanted = (len(found.x), *asked.data.shape)
        if tuple(found.samples.shape) != wanted:
            raise Wrong(f"{where} samples have shape {tuple(found.samples.shape)} instead of {wanted}.")
        dtype = found.x.dtype if found.x.is_floating_point() else torch.float32
        dtype = torch.int64 if kind == "tokens" else dtype
        if found.samples.dtype != dtype:
            raise Wrong(f"{where} samples are {found.samples.dtype} and should be {dtype}.")
        if kind == "tokens" and not bool(((found.samples >= 0) & (found.samples < asked.data.levels)).all()):
            raise Wrong(f"{where} samples hold tokens outside 0 to {asked.data.levels - 1}.")
        if where_off := outside(found.samples, kind):
            raise Wrong(f"{where} samples {where_off}.")
        broken = int((~found.samples.isfinite().flatten(1).all(1)).sum())
        if broken:
            raise Wrong(f"{where} {broken} of {len(found.x)} samples are not finite.")
    return f"finite at {', '.join(map(str, budgets(subject)))} NFE on {', '.join(subject.kinds)}"


def outside(samples: Tensor, kind: str) -> str:
    """What is wrong with where samples of this kind lie, or nothing."""
    far_off = {
        "sphere": lambda x: float((x.double().norm(dim=-1) - 1).abs().max()),
        "torus": lambda x: float(x.double().abs().max()) - math.pi,
        "box": lambda x: float(x.double().abs().max()) - 1,
    }
    names = {"sphere": "the unit sphere", "torus": "[-pi, pi]", "box": "[-1, 1]"}
    gap = far_off[kind](samples) if kind in far_off else 0.0
    return f"lie up to {gap:.2g} off {names[kind]}" if gap > 1e-5 else ""


def budget(subject: Subject) -> str:
    """No more rows than the budget, and some: a model without a counted network cannot be measured."""
    subject.needs("sample")
    spent = []
    for nfe in budgets(subject):
        asked = subject.asked(nfe=nfe)
        if next(counters(asked.model), None) is None:
            raise Wrong("its model has no counted network: wrap what it calls in Counted.")
        n, tolerance = ROWS[subject.kind], None
        if asked.method.adaptive:
            n = 16
            try:
                tolerance, _ = calibrate(
                    Ready(asked.method, asked.model, asked.data, {}), cell(subject, nfe, n), Site(Path())
                )
            except OverBudget as error:
                raise Wrong(f"{error}: raise `least`, which is {subject.plugin.least}.") from None
            asked = again(asked, tolerance=tolerance)
        limit = nfe * n * (SLACK if tolerance else 1)
        with suppress(OverBudget), torch.no_grad(), counting(asked.model, 4 * nfe * n) as tallies:
            asked.method.sample(asked.model, start(asked, n), nfe)
        if tallies["nfe"].rows > limit:
            raise Wrong(
                f"at a budget of {nfe} it asks {tallies['nfe'].rows / n:g} evaluations a sample, or more: "
                "spend no more than it is given."
            )
        spent.append(tallies["nfe"].rows / n)
        if not tallies["nfe"].rows and not tallies["extra"].rows:
            raise Wrong(f"at a budget of {nfe} no evaluation is counted at all.")
    pairs = (f"{used:g} of {nfe}" for used, nfe in zip(spent, budgets(subject)))
    return f"it spends {', '.join(pairs)}"


def cell(subject: Subject, nfe: int, n: int) -> Cell:
    """The question that an adaptive method's tolerance is found for."""
    who = {"method": subject.plugin.name, "version": subject.plugin.version, "parameters": "{}"}
    what = {"data": EXACT[subject.kind], "base": "", "base_id": "", "train_seed": 0, "images": None}
    return Cell(**who, **what, ask="sample", nfe=nfe, seed=0, samples=n, chunk=n, protocol="", source="")


def counter(subject: Subject) -> str:
    """Every use of a network goes through its counter."""
    asked = subject.asked()
    nfe, n = max(10, subject.plugin.least), ROWS[subject.kind]
    questions = {}
    if "sample" in subject.plugin.abilities:
        questions["sample"] = (asked.method.sample, start(asked, n))
    for name in {"nll", "bound"} & set(subject.plugin.abilities):
        questions[name] = (getattr(asked.method, name), asked.data.scale(asked.data.test[:n]))
    for name, (ask, x) in questions.items():
        watch = Watch(asked.model, n)
        with torch.no_grad(), counting(asked.model) as tallies, watch:
            ask(asked.model, x, nfe)
        if watch.seen:
            raise Wrong(f"in {name} {watch.seen}: call the denoiser, or wrap the network in Counted.")
        counted = tallies["nfe"].rows + tallies["extra"].rows
        if watch.passed > counted:
            raise Wrong(
                f"in {name} {watch.passed} rows pass its networks and {counted} are counted: let tallies be."
            )
        if name != "sample" and tallies["nfe"].rows > nfe * n:
            raise Wrong(f"{name} asks {tallies['nfe'].rows / n:g} evaluations a row at a budget of {nfe}.")
    return "no network is used behind the counter's back"


def seed(subject: Subject) -> str:
    """The same seed gives the same samples, another seed others."""
    subject.needs("sample")
    asked, nfe = subject.asked(), max(10, subject.plugin.least)
    first, second, other = (drawn(asked, nfe, seed=s).samples for s in (0, 0, 1))
    if not torch.equal(first, second):
        raise Wrong("the same seed gives other samples: draw noise by torch, whose generator is seeded.")
    if torch.equal(first, other):
        raise Wrong("two seeds give the same samples: begin from x, which the seed draws.")
    return "the same seed gives the same samples"


def micro_batch(subject: Subject) -> str:
    """What fits the device changes nothing."""
    subject.needs("sample")
    asked, nfe = subject.asked(), max(10, subject.plugin.least)
    gap = far(drawn(asked, nfe, micro_batch=7).samples, drawn(asked, nfe).samples)
    if gap > CLOSE:
        raise Wrong(
            f"micro-batches of 7 rows change its samples by {gap:.1g} of their range: it must not see them."
        )
    return f"micro-batches of 7 rows change {gap:.1g} of the range"


def batch(subject: Subject) -> str:
    """A row's sample does not depend on how many others are drawn with it, given its noise."""
    subject.needs("sample")
    if subject.cls.batchwise:
        raise Skip("it declares that its steps depend on the whole chunk")
    most, few = ROWS[subject.kind], ROWS[subject.kind] // 4 + 1
    several = "train" not in subject.plugin.abilities and not subject.cls.adaptive
    gaps = [common(subject, schedule, most, few) for schedule in subject.schedules[: None if several else 1]]
    return f"{few} rows alone and among {most} differ by {max(gaps):.1g} of the range"


def common(subject: Subject, schedule: str, most: int, few: int) -> float:
    """How far the first samples drawn in a small and in a large batch are apart, with the same noise."""
    asked, nfe = subject.asked(schedule=schedule), max(10, subject.plugin.least)
    x, found = start(asked, most), []
    for n in (most, few):
        noise = CommonNoise(n, most)
        with noise:
            found.append(drawn(asked, nfe, x=x[:n].clone()).samples)
        if noise.other:
            raise Skip(f"it draws by {noise.other}, which no two batches share")
    gap = far(found[1], found[0][:few])
    if gap > CLOSE:
        raise Wrong(
            f"under {schedule} its samples change by {gap:.1g} of their range with the number of rows drawn "
            "together; if the paper's steps depend on the whole batch, declare batchwise = True."
        )
    return gap


def input_(subject: Subject) -> str:
    """What it is given is not written to, nor are torch's settings."""
    asked, nfe = subject.asked(), max(10, subject.plugin.least)
    n = ROWS[subject.kind]
    settings = torch.get_default_dtype(), torch.get_num_threads()
    if "sample" in subject.plugin.abilities:
        x = start(asked, n)
        before = x.clone()
        drawn(asked, nfe, x=x)
        if not torch.equal(x, before):
            raise Wrong("sample writes to the x it is given: begin with x = x.clone().")
    for name in {"nll", "bound"} & set(subject.plugin.abilities):
        x = asked.data.scale(asked.data.test[:n])
        before = x.clone()
        with torch.no_grad():
            getattr(asked.method, name)(asked.model, x, nfe)
        if not torch.equal(x, before):
            raise Wrong(f"{name} writes to the x it is given: begin with x = x.clone().")
    if settings != (torch.get_default_dtype(), torch.get_num_threads()):
        raise Wrong("it changes torch's default dtype or number of threads: leave both alone.")
    return "what it is given stays as it is"


def state(subject: Subject) -> str:
    """A new instance with the model's tensors, read back from a file, gives the same samples."""
    subject.needs("sample")
    nfe = max(10, subject.plugin.least)
    asked = subject.asked(nfe=nfe)
    before, stated = drawn(asked, nfe).samples, copy.deepcopy(vars(asked.method))
    if not subject.cls.per_nfe:
        drawn(asked, nfe + 5, seed=3)
    after = drawn(asked, nfe).samples
    if not torch.equal(before, after) or repr(stated) != repr(vars(asked.method)):
        raise Wrong(
            "what it was asked before changes its answers: keep nothing on the instance or in the module."
        )
    schedule = subject.schedules[0]
    base = subject.base(subject.kind, schedule)
    fields = {"tolerance": asked.method.tolerance} if asked.method.adaptive else {}
    fresh = make(
        fresh_class(subject.plugin, "again"),
        copy.deepcopy(base),
        asked.data,
        nfe,
        schedule,
        fields,
        trained=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(kept.tensors_of(asked.model), path)
        kept.fill(fresh.model, path)
    try:
        loaded = drawn(fresh, nfe).samples
    except Exception as error:
        raise Wrong(
            f"its model, built anew and given its tensors, stops with {sentence(error)}: keep all in buffers."
        ) from None
    gap = far(loaded, before)
    # What follows from the tensors is computed anew, and rounded; step control may turn on the rounding.
    if gap > (100 * CLOSE if asked.method.adaptive else CLOSE):
        raise Wrong(
            f"its model, built anew and given its tensors, gives other samples (by {gap:.1g} of the range): "
            "keep all it needs in buffers."
        )
    return "its tensors are all there is to its model"
