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


def found(part: str, name: str) -> dict:
    """The record of that part whose name begins so."""
    facts = json.loads((ROOT / "benchmarks" / "results" / f"{part}.json").read_text())
    return next(one for one in facts["records"] if one["name"].startswith(name))


def hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 360 else f"{seconds / 60:.1f} min"


def share_of(plugin) -> float:
    return plugin.declared.get("share", 1.0)


def page() -> str:
    """The page, from what was measured last."""
    from bench import registry

    known = [p for p in registry.plugins().values() if p.folder.startswith("sampling_acceleration/")]
    samplers = [p for p in known if "sample" in p.abilities and "image" in p.kinds]
    trained = [p for p in samplers if "train" in p.abilities]
    cells = sum(budget >= plugin.least for plugin in samplers for budget in BUDGETS)
    budgets = sum(budget for plugin in samplers for budget in BUDGETS if budget >= plugin.least)
    flops, parameters = network()
    speed = PEAK * USED / flops
    evaluations = budgets * SAMPLES
    loop = found("throughput", "digits, 50 NFE: against the bare loop")
    overhead = max(1 / loop["value"], 1.0)
    drawing = evaluations / speed * overhead
    images = cells * SAMPLES
    looking = images * extractor() / (PEAK * USED)
    many = found("frechet", "Fréchet distance, 5,000 x 2,048: value and 20")["details"]
    gathering = many["value"] - many["value from sums"]
    distance = 10 * gathering + many["value and replicates"] - gathering
    measuring = cells * distance
    chunks = cells * math.ceil(SAMPLES / CHUNK)
    tail = max(BUDGETS) * CHUNK / speed
    lines = [
        f"| {gpus} | {hours((drawing + looking) / gpus + tail)} | {hours(measuring)} "
        f"| {hours(max((drawing + looking) / gpus + tail, measuring))} "
        f"| {gpus * max((drawing + looking) / gpus + tail, measuring) / 3600:,.0f} |"
        for gpus in GPUS
    ]
    table = "\n".join(lines)
    total = sum(share_of(p) * (len(BUDGETS) if p.declared.get("per_nfe") else 1) for p in trained)
    shares = ", ".join(
        f"`{p.name}` {share_of(p):g}{' at each NFE' if p.declared.get('per_nfe') else ''}" for p in trained
    )
    return f"""# What a large comparison costs

Worked out by `python -m benchmarks.costs` from the figures in [benchmarks](../benchmarks/README.md): the comparison of
all methods of sampling-acceleration on ImageNet-64, {SAMPLES:,} samples at each of {", ".join(map(str, BUDGETS))} NFE, one seed.

## The work

- {len(samplers)} methods give {cells} cells (a method below its least budget has none there) and
  {budgets:,} evaluations a sample in all: {budgets:,} x {SAMPLES:,} = **{evaluations / 1e6:,.0f} million evaluations**
  of the network, and {cells} x {SAMPLES:,} = {images / 1e6:.1f} million images to look at.
- One evaluation, counted on a U-Net with ADM's widths for ImageNet-64 (192 channels, times 1, 2, 3, 4; three
  residual blocks a scale; attention below 64 pixels; {parameters / 1e6:.0f} million parameters): **{flops / 1e9:.0f} GFLOP**.
- Inception-v3, counted likewise: {extractor() / 1e9:.1f} GFLOP an image.

## Measured

- The harness takes {overhead:.3f} times the time of a bare loop over the network, on one CPU thread, with the network
  for digits, of {small_network() / 1e6:.1f} MFLOP. What it adds to a step grows with the pixels and not with the network, so
  this is the most.
- A Fréchet distance with its 20 replicates takes one CPU thread {distance:.0f} s a cell: {10 * gathering:.0f} s to sum
  {SAMPLES:,} rows of 2,048 features (ten times those for 5,000) and {many["value and replicates"] - gathering:.0f} s for 21 values.

## Assumed

- A GPU gives {USED:.0%} of {PEAK / 1e12:.0f} TFLOP/s, which is what its maker states for an A100 in bf16 (`--precision bf16`):
  {speed:,.0f} evaluations a second. The share is a guess; all hours of drawing go with its inverse.
- Every method evaluates a network of this size, without guidance, which would double it. The denoiser exists.
- One process measures, a cell at a time, while the GPUs draw; the extractor runs on the GPUs.
- Chunks of {CHUNK} samples, {chunks:,} in all, keep every GPU busy until the last one: at the end it waits for one chunk
  at {max(BUDGETS)} NFE at most, {tail:.0f} s.

## The bill

Drawing on one GPU: {evaluations:,} evaluations / {speed:,.0f} a second x {overhead:.3f} = **{hours(drawing)}**, and
looking at the samples {hours(looking)}. Measuring: {cells} cells x {distance:.0f} s = {hours(measuring)} of one CPU core.

| GPUs | drawing and looking | measuring, beside it | until the table is there | GPU hours |
|---:|---:|---:|---:|---:|
{table}

Where measuring is the longer of the two, more GPUs do not help.

## What is not in it

The foundations' methods, which the table of a category shows as baselines. And training: {len(trained)} of the methods train
or search on top of the denoiser, each with a share of the data's training budget of {BUDGET / 1e6:.0f} million images seen: {shares}.
Those are {total:g} budgets. At three evaluations' work an image (forward and backward) one is {hours(3 * BUDGET / speed)}
of one GPU, and all are {hours(3 * BUDGET * total / speed)} at most: those that only estimate or search go forward alone.
"""  # noqa: E501


def write() -> None:
    PAGE.write_text(page(), encoding="utf-8")


@click.command()
def main() -> None:
    """Write docs/costs.md anew."""
    write()


if __name__ == "__main__":
    main()
