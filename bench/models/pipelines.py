"""Pipelines of diffusers as denoisers, and denoisers as pipelines.

A pipeline is a folder with model_index.json, unet/ and scheduler/, a checkpoint of diffusers' training, one
whose files lie together, or a bare UNet2DModel with a scheduler's configuration. Weights are safetensors; a
pickled file is read by torch's weights-only reader, which runs nothing, or not at all.
"""

import json
import math
import os
import re
from collections.abc import Collection
from pathlib import Path

import click
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bench.cache import key_of
from bench.data import Data
from bench.diffusion.adapters import Discrete, Exploding, Preconditioned
from bench.diffusion.denoiser import Denoiser, Prediction
from bench.diffusion.networks import OfUNet
from bench.diffusion.schedule import EDM, VE, Schedule, Table, cosine_table, ddpm_table
from bench.models.checkpoints import of_data, shares_of, suited
from bench.models.kept import How, sha256_of

FORM = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
SIGN_OF_F = {"epsilon": 1.0, "v_prediction": -1.0}  # in an EDM scheduler's terms
LEAST = 1e-12  # bar-alpha where a last step has no signal, and so no finite half log-SNR
UNET, WEIGHTS = "config.json", "diffusion_pytorch_model"
CLIPPING = ("DDPMScheduler", "DDIMScheduler")  # which clip where their configuration does not say


class Clipped(Denoiser):
    """A denoiser whose x0 is clipped to [-clip, clip] and whose eps is left as the network gives it, as
    diffusers' schedulers sample by default.
    """

    clip = 1.0

    def at(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        out = super().at(x, alpha, sigma)
        out.x0 = out.x0.clamp(-self.clip, self.clip)
        return out


def opened(place: str, data: Data, how: How, clip: bool = False) -> tuple[Denoiser, dict]:
    """The denoiser of a diffusers pipeline, a folder or a hub's id, and a card; ClickException where it is
    not a UNet2DModel of a process that is known here, or not for `data`. `clip` makes it `Clipped`.
    """
    try:
        return read(place, data, how, clip)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise click.ClickException(f"a configuration in {place} says what cannot be ({reason}).") from None


def read(place: str, data: Data, how: How, clip: bool) -> tuple[Denoiser, dict]:
    """As `opened`, raising whatever follows from a configuration that holds no sense.

    Learned variances are `Prediction.extra`.
    """
    folder = Path(place) if Path(place).is_dir() else from_hub(place)
    unet, scheduler = parts_of(folder, place)
    config = unet.config
    size = config.sample_size
    side = tuple(size) if isinstance(size, list | tuple) else (size, size)
    suited((config.in_channels, *(side if size else data.shape[1:])), data, place)
    classes = classes_of(config, data, place)
    net, schedule, facts, known = understood(unet, scheduler, classes, place)
    form, sigma_data = facts["form"], facts.get("sigma_data", 1.0)
    model = (Clipped if clip else Denoiser)(net, schedule, data.shape, form, sigma_data, known)
    if clip:
        model.clip = facts["clip"] = clip_of(scheduler, place)
    model = of_data(model, data, place).requires_grad_(False).eval().to(how.device)
    identity = key_of({"weights": sha256_of(model)} | facts, 64)
    return model, {"sha256": identity, "images": 0, "seconds": 0.0}


def understood(
    unet: torch.nn.Module, scheduler: dict, classes: int, place: str
) -> tuple[OfUNet, Schedule, dict, tuple[float, float]]:
    """The network as a Denoiser asks it, its process, the facts of what its output means, and the half
    log-SNRs it knows: of a process in discrete steps, which becomes a Table, of ScoreSdeVePipeline's, a VE
    schedule, or of an EDM...Scheduler, EDM's. ClickException where time and scheduler are of two of them.
    """
    name, time = scheduler["_class_name"], unet.config.time_embedding_type
    explodes, edm = "ScoreSdeVe" in name, name.startswith("EDM")
    if (time == "fourier") != explodes or (edm and time != "positional"):
        raise click.ClickException(
            f"{place} joins a {time} time and a {name}, and how it was trained cannot be told; fourier goes "
            "with ScoreSdeVeScheduler, positional with those of EDM, both but fourier with steps."
        )
    if explodes:
        lowest, highest = (2 * scheduler[end] for end in ("sigma_min", "sigma_max"))  # on [-1, 1]
        return Exploding(unet, classes), VE(lowest, highest), {"form": "eps"}, between(lowest, highest)
    if edm:
        lowest, highest = scheduler.get("sigma_min", 0.002), scheduler.get("sigma_max", 80.0)
        facts = {"form": "F", "sign": SIGN_OF_F[predicted(scheduler, SIGN_OF_F, place)]}
        facts["sigma_data"] = float(scheduler.get("sigma_data", 0.5))
        net = Preconditioned(unet, classes, facts["sign"])
        return net, EDM(lowest, highest), facts, between(lowest, highest)
    table = table_of(scheduler, place)
    net = Discrete(unet, table, classes)
    facts = {"form": FORM[predicted(scheduler, FORM, place)]}
    if table.offset or table.last:
        facts["steps"] = (table.offset, table.last)
    return net, table, facts, net.known


def between(lowest: float, highest: float) -> tuple[float, float]:
    """The half log-SNRs of these sigmas, where alpha is 1."""
    if not 0 < lowest < highest < math.inf:
        raise ValueError(f"sigma goes from {lowest} to {highest}")
    return -math.log(highest), -math.log(lowest)


def from_hub(place: str) -> Path:
    """The folder of a hub's repository, brought here if need be."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        raise click.BadParameter(f"there is no folder {place}, and a hub's id is OWNER/NAME.")
    try:
        from huggingface_hub import snapshot_download

        kinds = ["*.json", "*.safetensors"]
        folder = Path(snapshot_download(place, allow_patterns=kinds))
        if not any(folder.rglob("*.safetensors")):
            folder = Path(snapshot_download(place, allow_patterns=["*.json", f"*{WEIGHTS}.bin"]))
        return folder
    except Exception as error:  # whatever its transport raises
        raise click.ClickException(
            f"{place} is no folder here and cannot be had from the hub ({type(error).__name__}); download it "
            "elsewhere and give its folder."
        ) from None


def parts_of(folder: Path, place: str) -> tuple[torch.nn.Module, dict]:
    """The UNet with its weights, and the scheduler's configuration. Either lies in a folder of its own or
    with the other; the scheduler's beside the UNet's too, or beside the checkpoint that the UNet's lies in.
    Of a checkpoint the averaged weights are taken, where there are any.
    """
    folder = Path(os.path.abspath(folder))
    homes = [home for home in (folder / "unet_ema", folder / "unet", folder) if (home / UNET).is_file()]
    above = [home / "scheduler" for home in (folder.parent, folder.parent.parent)]
    choices = [folder / "scheduler", folder, *above]
    plans = [path for home in choices if (path := home / "scheduler_config.json").is_file()]
    if not homes or not plans:
        lacks = f"unet/{UNET}" if not homes else "scheduler/scheduler_config.json"
        raise click.ClickException(f"{place} is not a pipeline of diffusers: it lacks {lacks}.")
    try:
        scheduler, kind = json.loads(plans[0].read_text()), json.loads((homes[0] / UNET).read_text())
    except ValueError:
        raise click.ClickException(f"a configuration in {place} is not JSON; save it anew.") from None
    if kind.get("_class_name") != "UNet2DModel":
        raise click.ClickException(f"{place} has a {kind.get('_class_name')}; only UNet2DModel is read.")
    return unet_of(homes[0], place), {"_class_name": "", **scheduler}


def unet_of(home: Path, place: str) -> torch.nn.Module:
    """The UNet2DModel of a folder with all of its weights, in float32."""
    from diffusers import UNet2DModel

    safe = sorted(home.glob(f"{WEIGHTS}*.safetensors"))
    if not safe and not (home / f"{WEIGHTS}.bin").is_file():
        raise click.ClickException(f"{home} has no {WEIGHTS}.safetensors.")
    variant = variant_of(safe, home)
    try:
        unet, report = UNet2DModel.from_pretrained(
            str(home),
            use_safetensors=bool(safe),
            variant=variant,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except RuntimeError:  # of other shapes
        raise click.ClickException(f"the weights of {place} are not those of its {UNET}.") from None
    except Exception as error:
        pickled = "it is pickled, and nothing but plain tensors is unpickled; save them as safetensors"
        raise click.ClickException(
            f"the weights in {home} cannot be read ({type(error).__name__}); "
            f"{damage(safe) or 'save them anew' if safe else pickled}."
        ) from None
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise click.ClickException(
            f"the weights of {place} are not those of its {UNET}: {len(wrong)} differ, {wrong[0]} first."
        )
    return unet


def variant_of(files: list[Path], home: Path) -> str | None:
    """The variant of the safetensors in a folder, as "fp16" of diffusion_pytorch_model.fp16.safetensors;
    None where they are of none. ClickException where there are several and nothing else.
    """
    names = [file.name.removeprefix(WEIGHTS).removesuffix(".safetensors") for file in files]
    found = sorted({re.sub(r"-\d+-of-\d+$", "", name) for name in names})  # without the numbers of pieces
    if len(found) > 1 and "" not in found:
        listed = ", ".join(name[1:] for name in found)
        raise click.ClickException(f"{home} has its weights as {listed}; leave one of them there.")
    return found[0][1:] or None if found else None


def damage(files: list[Path]) -> str | None:
    """Which of these safetensors is damaged, in words."""
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError):
            return f"{file.name} is damaged or not whole, get it anew"
    return None


def classes_of(config, data: Data, place: str) -> int:
    """How many classes a UNet knows; a label more than the data has is that of no class."""
    if config.class_embed_type is not None:
        raise click.ClickException(f"{place} is told classes by {config.class_embed_type!r}, not by labels.")
    known = config.num_class_embeds or 0
    of_data = 0 if data.labels is None else len(shares_of(data))
    return known - 1 if known and known - 1 == of_data else known


def predicted(scheduler: dict, kinds: Collection[str], place: str) -> str:
    """What a scheduler says the network's output is, one of the kinds that are read of it."""
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in kinds:
        name = scheduler["_class_name"]
        raise click.ClickException(f"{place} predicts {kind!r}; {', '.join(kinds)} are read with {name}.")
    return kind


def clip_of(scheduler: dict, place: str) -> float:
    """How far from 0 the scheduler lets x0 be; ClickException where it does not clip."""
    name = scheduler["_class_name"]
    if scheduler.get("thresholding") or not scheduler.get("clip_sample", name in CLIPPING):
        raise click.ClickException(f"{place} has a {name} that does not clip; leave out clip=1.")
    return float(scheduler.get("clip_sample_range", 1.0))


def table_of(scheduler: dict, place: str) -> Table:
    """The discrete process of a scheduler's configuration, by diffusers' names and defaults."""
    n, kind = scheduler.get("num_train_timesteps", 1000), scheduler.get("beta_schedule", "linear")
    first, last = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
    if "beta_schedule" not in scheduler and "trained_betas" not in scheduler:
        raise click.ClickException(f"{place} has a {scheduler['_class_name']}, which has no discrete steps.")
    if scheduler.get("trained_betas") is not None:
        alpha_bar = torch.cumprod(1 - torch.tensor(scheduler["trained_betas"], dtype=torch.float64), 0)
    elif kind == "linear":
        alpha_bar = torch.cumprod(1 - torch.linspace(first, last, n, dtype=torch.float64), 0)
    elif kind == "scaled_linear":
        roots = torch.linspace(first**0.5, last**0.5, n, dtype=torch.float64)
        alpha_bar = torch.cumprod(1 - roots**2, 0)
    elif kind == "squaredcos_cap_v2":
        alpha_bar = cosine_table(n).log_alpha_bar[1:].exp()
    else:
        raise click.ClickException(
            f"{place} has the betas {kind!r}; linear, scaled_linear, squaredcos_cap_v2 "
            "and trained_betas are read."
        )
    if scheduler.get("rescale_betas_zero_snr"):
        root = alpha_bar.sqrt()  # Lin et al. 2023, section 3.1: shifted to end at 0, the first kept
        alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        alpha_bar[-1] = LEAST
    last = 0 if scheduler.get("set_alpha_to_one", True) else 1
    return Table(alpha_bar, int(scheduler.get("steps_offset", 0)), last)


def exported(model: Denoiser, folder: Path) -> None:
    """Write a denoiser as a pipeline that diffusers opens; ClickException where it has no such thing."""
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler

    net, schedule = model.net.net, model.schedule
    if not isinstance(net, Discrete):
        raise click.ClickException(
            "diffusers' pipelines have discrete steps, and this network has none: train the base ddpm."
        )
    log_alpha_bar = net.log_alpha_bar.cpu()
    betas = -torch.expm1(log_alpha_bar.diff())
    linear = torch.allclose(log_alpha_bar, ddpm_table(len(betas)).log_alpha_bar, rtol=1e-9)
    settings = {
        "num_train_timesteps": len(betas),
        "trained_betas": None if linear else betas.tolist(),
        "prediction_type": {form: kind for kind, form in FORM.items()}[model.form],
        "clip_sample": isinstance(model, Clipped),  # as the methods here sample
        "clip_sample_range": getattr(model, "clip", 1.0),
        "steps_offset": schedule.offset,
    }
    if schedule.last:  # which only DDIM's scheduler can say
        pipeline = DDIMPipeline(net.unet, DDIMScheduler(**settings, set_alpha_to_one=False))
    else:
        pipeline = DDPMPipeline(net.unet, DDPMScheduler(**settings))
    pipeline.save_pretrained(folder, safe_serialization=True)
