"""A digits table without the harness: diffusers' schedulers on the project's network, and torch-fidelity's
`calculate_metrics` with the digits extractor. `benchmarks.digits` times it against `bench run`.

With --errors it gives what the harness's table has besides: the jackknife's errors, by `calculate_metrics` of
all samples but one block of twenty, twenty times.

python -m benchmarks.with_diffusers --samples 40 --nfe 5
"""

import click
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bench.job import BLOCKS

BATCH = 500


class Images(Dataset):
    """A tensor of images as torch-fidelity takes it."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def schedulers() -> dict[str, object]:
    """diffusers' own implementations of methods that the zoo has too, by the zoo's names."""
    import diffusers

    linear = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    return {
        "ddim": diffusers.DDIMScheduler(**linear, clip_sample=False),
        "ddpm": diffusers.DDPMScheduler(**linear, clip_sample=False),
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler(**linear),
        "unipc": diffusers.UniPCMultistepScheduler(**linear),
    }


def noise_predictor(model, scheduler):
    """The network as diffusers wants it, a function of x and an integer time that predicts the noise."""
    from bench.diffusion.denoiser import FORMS

    net, spread = model.net.net, model.sigma_data

    def predict(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = scheduler.alphas_cumprod[t].sqrt(), (1 - scheduler.alphas_cumprod[t]).sqrt()
        a, b = FORMS[model.form](alpha, sigma, spread)
        scale = 1 / (alpha * torch.sqrt(spread**2 + (sigma / alpha) ** 2))
        out = net(scale * x, torch.log(alpha / sigma).expand(len(x)))
        return (alpha * out - a * x) / (alpha * b - sigma * a)

    return predict


@torch.no_grad()
def drawn(model, scheduler, n: int, nfe: int) -> Tensor:
    """(n, 1, 8, 8) uint8 levels 0 to 16."""
    predict, parts = noise_predictor(model, scheduler), []
    for start in range(0, n, BATCH):
        scheduler.set_timesteps(nfe)
        x = torch.randn(min(BATCH, n - start), *model.shape)
        for t in scheduler.timesteps:
            x = scheduler.step(predict(x, t), t, x).prev_sample
        parts.append(((x + 1) * 8).round().clamp(0, 16).to(torch.uint8))
    return torch.cat(parts)


def scores(images: Tensor, real: Tensor) -> tuple[float, float]:
    """FID and the Inception score."""
    from torch_fidelity import calculate_metrics

    found = calculate_metrics(
        input1=Images(images),
        input2=Images(real),
        feature_extractor="taxobench-digits",
        fid=True,
        isc=True,
        cuda=False,
        batch_size=BATCH,
        verbose=False,
    )
    return found["frechet_inception_distance"], found["inception_score_mean"]


def errors(images: Tensor, real: Tensor) -> Tensor:
    """The delete-a-block jackknife's standard errors of both."""
    blocks = images.chunk(BLOCKS)
    rest = [torch.cat([*blocks[:i], *blocks[i + 1 :]]) for i in range(len(blocks))]
    values = torch.tensor([scores(kept, real) for kept in rest], dtype=torch.float64)
    return ((len(values) - 1) * values.var(0, correction=0)).sqrt()


@click.command()
@click.option("--samples", type=int, default=2000)
@click.option("--nfe", default="5,10,20,50")
@click.option("--base", default="denoiser", help="As for `bench run`.")
@click.option("--errors", "with_errors", is_flag=True, help="The errors too.")
def main(samples: int, nfe: str, base: str, with_errors: bool) -> None:
    """Print FID and the Inception score of every scheduler at every budget."""
    from bench.data import load
    from bench.metrics.features import register
    from bench.models import bases

    register()
    torch.manual_seed(0)
    data = load("digits")
    model, _ = bases.base_of(base, data)
    for name, scheduler in schedulers().items():
        for budget in map(int, nfe.split(",")):
            images = drawn(model, scheduler, samples, budget)
            words = [f"{value:10.3f}" for value in scores(images, data.train)]
            if with_errors:
                words += [f"+- {value:.3f}" for value in errors(images, data.train)]
            click.echo(f"{name:12} {budget:5} {' '.join(words)}")


if __name__ == "__main__":
    main()
