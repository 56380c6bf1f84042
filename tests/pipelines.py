"""Small pipelines of diffusers for tests, saved by diffusers itself; images of digits, 1 x 8 x 8."""

from pathlib import Path

import diffusers
import torch

from bench.data import load
from bench.models import bases

DIGITS = load("digits")
BLOCKS = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def unet(seed: int = 0, **config) -> diffusers.UNet2DModel:
    torch.manual_seed(seed)
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (16, 32)}
    config = sizes | BLOCKS | {"layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 8} | config
    return diffusers.UNet2DModel(**config).eval()


def ddim(folder: Path, net: dict | None = None, **scheduler) -> diffusers.DDIMPipeline:
    """A DDIM pipeline of random weights, saved in `folder`."""
    process = diffusers.DDIMScheduler(clip_sample=False, **scheduler)
    pipeline = diffusers.DDIMPipeline(unet(**(net or {})), process)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


def opened(folder, data=DIGITS):
    return bases.base_of(f"diffusers:{folder}", data)[0]
