"""docs/costs.md: what a survey-wide comparison on ImageNet-64 costs, worked out from benchmarks/results.

python -m benchmarks.costs
"""

import json
import math

import click

from benchmarks.record import ROOT

PAGE = ROOT / "docs" / "costs.md"
SAMPLES, BUDGETS, CHUNK = 50_000, (5, 10, 20, 50), 500
PEAK, USED = 312e12, 0.35  # FLOP/s of an A100 in bf16 by its maker, and the share of them that a U-Net gets
GPUS = (1, 8, 64)
BUDGET = 10_000_000  # images seen, what `bench train` gives to 64 x 64
WORK = 3  # evaluations' work that an image takes in training, forward and backward
SEEDS = 3  # of the last column


def network() -> tuple[float, float]:
    """FLOPs of one evaluation, and parameters, of a U-Net with ADM's widths for ImageNet-64."""
    import torch
    from diffusers import UNet2DModel
    from torch.utils.flop_counter import FlopCounterMode

    down, up = ["DownBlock2D"] + 3 * ["AttnDownBlock2D"], 3 * ["AttnUpBlock2D"] + ["UpBlock2D"]
    with torch.device("meta"):
        net = UNet2DModel(
            sample_size=64,
            block_out_channels=(192, 384, 576, 768),
            layers_per_block=3,
            down_block_types=down,
            up_block_types=up,
            attention_head_dim=64,
            num_class_embeds=1000,
            resnet_time_scale_shift="scale_shift",
            downsample_type="resnet",
            upsample_type="resnet",
        )
        x, t, y = torch.zeros(1, 3, 64, 64), torch.zeros(1), torch.zeros(1, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            net(x, t, y)
    return float(counter.get_total_flops()), float(sum(p.numel() for p in net.parameters()))


def small_network() -> float:
    """FLOPs of one evaluation of the network for digits."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from bench.diffusion.networks import unet2d, widths_of

    with torch.device("meta"):
        net = unet2d((1, 8, 8), *widths_of((1, 8, 8)))
        with FlopCounterMode(display=False) as counter:
            net(torch.zeros(1, 1, 8, 8), torch.zeros(1))
    return float(counter.get_total_flops())


def extractor() -> float:
    """FLOPs of Inception-v3 on one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from torchvision.models import inception_v3

    with torch.device("meta"):
        net = inception_v3(weights=None, init_weights=False, aux_logits=False).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.zeros(1, 3, 299, 299))
    return float(counter.get_total_flops())


def records(part: str) -> list[dict]:
    """What was measured of that part."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{part}.json").read_text())["records"]


def hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 360 else f"{seconds / 60:.1f} min"


def shares_of(plugin) -> list[float]:
    """The share of the data's training budget that each of a method's trainings takes."""
    least = sum(budget >= plugin.least for budget in BUDGETS)
    times = least if plugin.declared.get("per_nfe") else 1
    return [plugin.declared.get("share", 1.0)] * times if "train" in plugin.abilities else []


def page() -> str:
    """The page, from what was measured last."""
    from bench.models.recipes import RECIPES
    from bench.selection import Selection, selected

    chosen = selected(Selection(category="sampling-acceleration"), ["image"])
    samplers = [plugin for plugin, _ in chosen.methods if plugin.name not in chosen.only_nll]
    cells = sum(budget >= plugin.least for plugin in samplers for budget in BUDGETS)
    budgets = sum(budget for plugin in samplers for budget in BUDGETS if budget >= plugin.least)
    flops, parameters = network()
    speed = PEAK * USED / flops
    evaluations = budgets * SAMPLES
    loops = [one for one in records("throughput") if one["name"].endswith("against the bare loop")]
    worst = min(loops, key=lambda one: one["value"])
    overhead = max(1 / worst["value"], 1.0)
    drawing = evaluations / speed * overhead
    images = cells * SAMPLES
    looking = images * extractor() / (PEAK * USED)
    title = "Fréchet distance, 5,000 x 2,048: value and 20"
    many = next(one for one in records("frechet") if one["name"].startswith(title))["details"]
    gathering = many["value"] - many["value from sums"]
    distance = 10 * gathering + many["value and replicates"] - gathering
    measuring = cells * distance
    chunks = cells * math.ceil(SAMPLES / CHUNK)
    tail = max(BUDGETS) * CHUNK / speed
    trained = {plugin.name: shares_of(plugin) for plugin in samplers if shares_of(plugin)}
    shared = sorted({name for plugin in samplers for name in plugin.recipes} - {"denoiser"})
    budget = WORK * BUDGET / speed
    first = budget * sum(RECIPES[name].share for name in shared)
    own, longest = (budget * f(one for shares in trained.values() for one in shares) for f in (sum, max))
    rows = []
    for gpus in GPUS:
        training = first + own / gpus + longest * (1 - 1 / gpus)
        seed = (drawing + looking) / gpus + tail
        whole = [max(training + n * seed, n * measuring) for n in (1, SEEDS)]
        times = " | ".join(hours(one) for one in (training, seed, measuring, *whole))
        rows.append(f"| {gpus} | {times} | {gpus * whole[0] / 3600:,.0f} |")
    table = "\n".join(rows)
    shares = ", ".join(
        f"`{name}` {given[0]:g}{f' at each of {len(given)} NFE' if len(given) > 1 else ''}"
        for name, given in trained.items()
    )
    return f"""# What a large comparison costs

Worked out by `python -m benchmarks.costs` from the figures in [benchmarks](../benchmarks/README.md): what
`bench run --category sampling-acceleration --metric fid` takes on ImageNet-64, with {SAMPLES:,} samples at each of {", ".join(map(str, BUDGETS))} NFE.

## The work

- {len(samplers)} methods, of which {len(chosen.baselines)} are the foundations' that the command runs as baselines, give {cells} cells a seed (a method below its
  least budget has none there) and {budgets:,} evaluations a sample in all: {budgets:,} x {SAMPLES:,} = **{evaluations / 1e6:,.0f} million
  evaluations** of the network, and {cells} x {SAMPLES:,} = {images / 1e6:.1f} million images to look at.
- One evaluation, counted on a U-Net with ADM's widths for ImageNet-64 (192 channels, times 1, 2, 3, 4; three
  residual blocks a scale; attention below 64 pixels; {parameters / 1e6:.0f} million parameters): **{flops / 1e9:.0f} GFLOP**.
- Inception-v3, counted likewise: {extractor() / 1e9:.1f} GFLOP an image.
- Training, in budgets of {BUDGET / 1e6:.0f} million images seen. Before all else, one after the other, what methods share beside the
  denoiser: {", ".join(f"`{name}` {RECIPES[name].share:g}" for name in shared)}. Then {len(trained)} methods, each on one GPU:
  {shares}. Those are {(first + own) / budget:g} budgets.

## Measured

- The harness takes up to {overhead:.3f} times the time of a bare loop over the network, the most of {len(loops)} comparisons on one CPU
  thread ({worst["name"].partition(":")[0]}). The network for digits is of {small_network() / 1e6:.1f} MFLOP, and what the harness adds to a step grows with the pixels
  and not with the network.
- A Fréchet distance with its 20 replicates takes one CPU thread {distance:.0f} s a cell: {10 * gathering:.0f} s to sum
  {SAMPLES:,} rows of 2,048 features (ten times those for 5,000) and {many["value and replicates"] - gathering:.0f} s for 21 values.

## Assumed

- A GPU gives {USED:.0%} of {PEAK / 1e12:.0f} TFLOP/s, which is what its maker states for an A100 in bf16 (`--precision bf16`):
  {speed:,.0f} evaluations a second. The share is a guess; all hours of training and drawing go with its inverse. A small network gets
  less: the one for 28 x 28 pixels, of 118 MFLOP, 12.7 TFLOP/s of an H200 in TF32, uncompiled.
- Every method evaluates a network of this size, without guidance, which would double it. The denoiser exists.
- An image seen in training is the work of {WORK} evaluations, forward and backward. What only estimates or searches goes forward alone
  and takes less; what asks a teacher for its targets may take more.
- One process measures, a cell at a time, while the GPUs draw; the extractor runs on the GPUs.
- Chunks of {CHUNK} samples, {chunks:,} a seed, keep every GPU busy until the last one: at the end it waits for one chunk
  at {max(BUDGETS)} NFE at most, {tail:.0f} s. The longest training, {hours(longest)}, is taken to come last.

## The bill

Training on one GPU: {(first + own) / budget:g} budgets of {hours(budget)} = **{hours(first + own)}**, of which the shared models are {hours(first)}, however many GPUs there are.
Drawing on one GPU, a seed: {evaluations:,} evaluations / {speed:,.0f} a second x {overhead:.3f} = **{hours(drawing)}**, and
looking at the samples {hours(looking)}. Measuring, a seed: {cells} cells x {distance:.0f} s = {hours(measuring)} of one CPU core.

| GPUs | training, once | drawing and looking, a seed | measuring, beside it | the table of one seed | of {SEEDS} seeds | GPU hours, one seed |
|---:|---:|---:|---:|---:|---:|---:|
{table}

With many GPUs the trainings that cannot be divided are the longest part, and the GPU hours count those that wait for them.

In the bill: training, drawing, looking and measuring, of the category's methods and their baselines. Not in it: training the denoiser,
likelihoods, guidance, and cells that are drawn again.
"""  # noqa: E501


def write() -> None:
    PAGE.write_text(page(), encoding="utf-8")


@click.command()
def main() -> None:
    """Write docs/costs.md anew."""
    write()


if __name__ == "__main__":
    main()
