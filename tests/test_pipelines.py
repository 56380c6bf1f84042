"""Pipelines that diffusers saved are bases here, and what is trained here is one there."""

import json
import math
import pickle
import shutil

import click
import diffusers
import pytest
import torch
from diffusers.training_utils import EMAModel
from pipelines import DIGITS, ddim, opened, unet
from running import bench

from bench import registry
from bench.diffusion.counting import counting
from bench.diffusion.denoiser import FORMS
from bench.diffusion.schedule import SCHEDULES, ddpm_betas
from bench.models import bases, pipelines, specs

PROCESSES = {
    "linear": {},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": [0.02 + 0.001 * i for i in range(100)], "num_train_timesteps": 100},
    "no signal left": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
}


def method(name: str, **fields):
    return registry.find(name, registry.plugins()).load()(**fields)


def noise(n: int = 4) -> torch.Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def drawn_by(pipeline, steps: int = 10) -> torch.Tensor:
    """diffusers' own samples from `noise`, on [0, 1]."""
    generator = torch.Generator().manual_seed(3)
    return pipeline(batch_size=4, generator=generator, num_inference_steps=steps, output_type="pt").images


def drawn(base, spacing: str, start: torch.Tensor | None = None) -> torch.Tensor:
    start = noise() if start is None else start
    with torch.no_grad():
        x = method("ddim", schedule="own", spacing=spacing).sample(base, start, 10)
    return (x / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_a_pipeline_samples_as_diffusers_does(process, spacing, tmp_path):
    theirs = ddim(tmp_path, timestep_spacing=spacing, **PROCESSES[process])
    # where a process ends without signal, x0 from eps loses what diffusers' float32 table has lost
    near = 2e-4 if spacing == "trailing" and process in ("cosine", "no signal left") else 1e-5
    torch.testing.assert_close(drawn(opened(tmp_path), spacing), drawn_by(theirs), rtol=0, atol=near)


ENDS = [{"set_alpha_to_one": False}, {"steps_offset": 1}, {"set_alpha_to_one": False, "steps_offset": 3}]


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("ends", ENDS)
def test_a_pipeline_that_begins_or_ends_elsewhere_samples_as_diffusers_does(spacing, ends, tmp_path):
    theirs = ddim(tmp_path / "one", timestep_spacing=spacing, **ends)
    torch.testing.assert_close(drawn(opened(tmp_path / "one"), spacing), drawn_by(theirs), rtol=0, atol=1e-5)
    ddim(tmp_path / "other", timestep_spacing=spacing)
    one, other = (bases.base_of(f"diffusers:{tmp_path / name}", DIGITS)[1] for name in ("one", "other"))
    assert one["sha256"] != other["sha256"]


def test_steps_that_an_offset_puts_beyond_the_last_are_refused(tmp_path):
    ddim(tmp_path, steps_offset=1)
    with pytest.raises(ValueError, match="1000 of 1000 steps leave no room for steps_offset, which is 1"):
        opened(tmp_path).schedule.steps(1000, "leading", end="zero")


def test_an_offset_below_0_is_refused(tmp_path):
    ddim(tmp_path, steps_offset=-1)
    with pytest.raises(click.ClickException, match="says what cannot be \\(steps_offset is -1\\)"):
        opened(tmp_path)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_is_read_by_its_form(kind, tmp_path):
    theirs = ddim(tmp_path, prediction_type=kind)
    base = opened(tmp_path)
    torch.testing.assert_close(drawn(base, "leading"), drawn_by(theirs), rtol=0, atol=1e-5)
    assert base.form == pipelines.FORM[kind] in FORMS


def exactly(pipeline, base) -> tuple[torch.Tensor, torch.Tensor]:
    """diffusers' samples and ours as `drawn`, both in float64: where x0 is clipped and eps is kept, x grows
    and with it what float32 lost, to 3e-5.
    """
    pipeline.unet.double(), base.net.net.unet.double()
    pipeline.scheduler.alphas_cumprod = torch.cumprod(1 - ddpm_betas(), 0)
    start = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return drawn_by(pipeline).double(), drawn(base, "leading", start)


def by_default(folder, **scheduler) -> diffusers.DDIMPipeline:
    """A pipeline saved with diffusers' DDPMScheduler, as training there does, sampled by its DDIM."""
    process = diffusers.DDPMScheduler(**scheduler)
    diffusers.DDPMPipeline(unet(), process).save_pretrained(folder)
    pipeline = diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler.from_config(process.config))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


CLIPPING = {
    "defaults": {},
    "another range": {"clip_sample_range": 0.5},
    "v": {"prediction_type": "v_prediction"},
    "x0": {"prediction_type": "sample", "clip_sample_range": 0.05},
}


@pytest.mark.parametrize("process", CLIPPING)
def test_with_clip_a_pipeline_samples_as_diffusers_does_by_default(process, tmp_path):
    pipeline = by_default(tmp_path, **CLIPPING[process])
    theirs, ours = exactly(pipeline, opened(f"{tmp_path}:clip=1"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert (exactly(pipeline, opened(tmp_path))[1] - theirs).abs().max() > 1e-3


def test_clip_bounds_x0_alone_and_is_another_base(tmp_path):
    by_default(tmp_path, clip_sample_range=0.5)
    (plain, one), (clipped, other) = (
        bases.base_of(f"diffusers:{tmp_path}{clip}", DIGITS) for clip in ("", ":clip=1")
    )
    with torch.no_grad():
        out, bound = plain(3 * noise(), 0.5), clipped.under(clipped.schedule)(3 * noise(), 0.5)
    assert torch.equal(out.eps, bound.eps) and torch.equal(out.x0.clamp(-0.5, 0.5), bound.x0)
    assert out.x0.abs().max() > 0.5 and one["sha256"] != other["sha256"]


def test_clip_and_guidance_go_together_in_any_order(tmp_path):
    theirs = unet(num_class_embeds=11)
    diffusers.DDPMPipeline(theirs, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    settings = (":guidance=2:clip=1", ":clip=1:guidance=2")
    cards = [bases.base_of(f"diffusers:{tmp_path}{text}", DIGITS)[1]["sha256"] for text in settings]
    alone = bases.base_of(f"diffusers:{tmp_path}:guidance=2", DIGITS)[1]["sha256"]
    assert cards[0] == cards[1] != alone


@pytest.mark.parametrize("scheduler", [{"clip_sample": False}, {"thresholding": True}])
def test_clip_is_refused_where_the_scheduler_does_not_clip(scheduler, tmp_path):
    by_default(tmp_path, **scheduler)
    with pytest.raises(click.ClickException, match="DDPMScheduler that does not clip; leave out clip=1"):
        opened(f"{tmp_path}:clip=1")


@pytest.mark.parametrize("text", ["denoiser:clip=1", "diffusers:a/b:clip=0", "diffusers:a/b:clip=2"])
def test_clip_is_of_pipelines_and_nothing_but_1(text):
    with pytest.raises(click.BadParameter, match="clip is of a pipeline of diffusers, and it is 1"):
        specs.parsed(text)


def test_there_is_no_likelihood_and_no_training_on_a_clipped_base():
    spec = specs.parsed("diffusers:a/b:clip=1")
    assert spec.unfit("ddim", {"sample"}, "sample") is None
    assert spec.unfit("flow", {"sample", "nll"}, "nll") == "flow has no likelihood with clip=1"
    assert "trains on its base" in spec.unfit("cd", {"sample", "train"}, "sample")


def test_a_clipped_base_is_exported_with_its_clipping(tmp_path):
    by_default(tmp_path / "first", clip_sample_range=0.5)
    pipelines.exported(opened(f"{tmp_path / 'first'}:clip=1"), tmp_path / "second")
    again = opened(f"{tmp_path / 'second'}:clip=1")
    assert again.clip == 0.5


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("n", [1, 7, 30])
def test_whole_steps_are_those_of_diffusers(spacing, n):
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(n)
    times = SCHEDULES["ddpm"]().steps(n, spacing, end="zero")
    found = (1000 * times[:-1]).round().long() - 1
    if spacing == "linspace" and n == 1:  # numpy's one point is the first
        found = found - 999
    assert found.tolist() == scheduler.timesteps.tolist() and times[-1] == 0


def test_the_range_it_knows_is_that_of_its_steps_and_other_schedules_keep_to_it(tmp_path):
    ddim(tmp_path, **PROCESSES["scaled"])
    base = opened(tmp_path)
    alpha_bar = diffusers.DDIMScheduler(**PROCESSES["scaled"]).alphas_cumprod.double()
    ends = torch.log(alpha_bar / (1 - alpha_bar))[[-1, 0]] / 2
    assert base.known == pytest.approx(tuple(ends.tolist()), abs=1e-4)
    for name in ("vp", "edm", "flow"):
        seen = base.under(SCHEDULES[name]())
        lam = seen.schedule.lam(torch.tensor([seen.schedule.t_max, seen.schedule.t_min]))
        assert lam[0] >= ends[0] - 1e-4 and lam[1] <= ends[1] + 1e-4
        x = method("dpmpp_2m", schedule=name).sample(seen, seen.prior(2), 5)
        assert x.isfinite().all()


def test_between_its_steps_it_is_told_a_fraction_of_one(tmp_path):
    ddim(tmp_path)
    net = opened(tmp_path).net.net
    lam = SCHEDULES["ddpm"]().lam(torch.tensor([0.001, 0.5, 0.50025, 1.0]).double()).float()
    torch.testing.assert_close(net.time(lam), torch.tensor([0.0, 499.0, 499.25, 999.0]), rtol=0, atol=1e-3)


def test_one_that_embeds_whole_steps_is_asked_at_the_nearest(tmp_path):
    theirs = ddim(tmp_path, {"time_embedding_type": "learned", "num_train_timesteps": 1000})
    base = opened(tmp_path)
    lam = SCHEDULES["ddpm"]().lam(torch.tensor([0.001, 0.50025]).double()).float()
    assert base.net.net.time(lam).tolist() == [0, 499]
    torch.testing.assert_close(drawn(base, "leading"), drawn_by(theirs), rtol=0, atol=1e-5)


def test_learned_variances_are_the_extra_channels(tmp_path):
    ddim(tmp_path, {"out_channels": 2})
    with torch.no_grad():
        out = opened(tmp_path)(noise(), 0.5)
    assert out.eps.shape == out.extra.shape == (4, 1, 8, 8)


def exploding(folder) -> diffusers.UNet2DModel:
    net = unet(time_embedding_type="fourier")
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=50.0)
    diffusers.ScoreSdeVePipeline(net, scheduler).save_pretrained(folder)
    return net


def test_a_variance_exploding_pipeline_has_the_score_of_its_unet_on_images_twice_as_wide(tmp_path):
    net = exploding(tmp_path)
    base = opened(tmp_path)
    x, sigma = 3 * noise(), torch.tensor([0.05, 0.4, 5.0, 80.0])
    with torch.no_grad():
        score = base.at(x, torch.ones(4), sigma).score
        theirs = net((x + 1) / 2, sigma / 2).sample / 2
    torch.testing.assert_close(score, theirs, rtol=1e-4, atol=1e-5)
    assert base.known == pytest.approx((-math.log(100), -math.log(0.02)))
    seen = base.under(SCHEDULES["ve"]())
    assert method("score_sde", schedule="own").sample(seen, seen.prior(2), 4).isfinite().all()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_pipeline_of_edm_samples_as_diffusers_euler_does(kind, tmp_path):
    net = unet()
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.7, sigma_max=40.0, prediction_type=kind)
    diffusers.DDPMPipeline(net, scheduler).save_pretrained(tmp_path)
    start = 40 * noise()
    scheduler.set_timesteps(8)
    theirs = start
    for time in scheduler.timesteps:
        with torch.no_grad():
            out = net(scheduler.scale_model_input(theirs, time), time).sample
        theirs = scheduler.step(out, time, theirs).prev_sample
    base = opened(tmp_path)
    with torch.no_grad():
        ours = method("ddim", schedule="own", spacing="karras").sample(base, start, 8)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    assert base.known == pytest.approx((-math.log(40), -math.log(0.002)))


def test_a_unet_that_was_trained_with_labels_is_told_them(tmp_path):
    theirs = unet(num_class_embeds=10)
    diffusers.DDIMPipeline(theirs, diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    base = opened(tmp_path)
    labels = torch.tensor([3, 1, 4, 1])
    with torch.no_grad():
        eps = base.given(labels)(noise(), 0.5).eps
        expected = theirs(noise(), 499, class_labels=labels).sample
        with pytest.raises(ValueError, match="no reading without"):
            base(noise(), 0.5)
    torch.testing.assert_close(eps, expected, rtol=0, atol=1e-5)
    assert len(base.shares) == 10
    with pytest.raises(click.BadParameter, match="cannot be guided"):
        bases.base_of(f"diffusers:{tmp_path}:guidance=2", DIGITS)


def test_a_label_more_than_the_data_has_is_that_of_no_class(tmp_path):
    theirs = unet(num_class_embeds=11)
    diffusers.DDIMPipeline(theirs, diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    base, _ = bases.base_of(f"diffusers:{tmp_path}:guidance=2", DIGITS)
    base.labels = labels = torch.tensor([3, 1, 4, 1])
    with torch.no_grad(), counting(base) as tallies:
        eps = base(noise(), 0.5).eps
        given, free = (theirs(noise(), 499, class_labels=y).sample for y in (labels, torch.full((4,), 10)))
    torch.testing.assert_close(eps, 2 * given - free, rtol=0, atol=1e-5)
    assert tallies["nfe"].rows == 8


def test_a_unets_folder_and_files_that_lie_together_are_read_too(tmp_path):
    ddim(tmp_path / "whole")
    bare = tmp_path / "together"
    shutil.copytree(tmp_path / "whole" / "unet", bare)
    shutil.copy(tmp_path / "whole" / "scheduler" / "scheduler_config.json", bare)
    cards = [
        bases.base_of(f"diffusers:{place}", DIGITS)[1]
        for place in (tmp_path / "whole", tmp_path / "whole" / "unet", bare)
    ]
    assert len({card["sha256"] for card in cards}) == 1


@pytest.fixture
def trained(tmp_path):
    """What diffusers' train_unconditional leaves: scheduler/, and a checkpoint with unet/ and unet_ema/."""
    ddim(tmp_path)
    shutil.rmtree(tmp_path / "unet")
    net = unet(seed=1)
    average = EMAModel(net.parameters(), model_cls=diffusers.UNet2DModel, model_config=net.config)
    unet(seed=2).save_pretrained(tmp_path / "checkpoint-500" / "unet")
    average.save_pretrained(tmp_path / "checkpoint-500" / "unet_ema")
    return tmp_path / "checkpoint-500"


def weights_of(base) -> torch.Tensor:
    return base.net.net.unet.conv_in.weight


def test_of_a_checkpoint_of_training_the_averaged_weights_are_taken(trained, monkeypatch):
    averaged, raw = unet(seed=1).conv_in.weight, unet(seed=2).conv_in.weight
    for place in (trained, trained / "unet_ema"):
        assert torch.equal(weights_of(opened(place)), averaged)
    assert torch.equal(weights_of(opened(trained / "unet")), raw)
    monkeypatch.chdir(trained / "unet_ema")
    assert torch.equal(weights_of(opened(".")), averaged)
    shutil.rmtree(trained / "unet_ema")
    assert torch.equal(weights_of(opened(trained)), raw)


def saved_as(folder, *variants: str, **how) -> None:
    ddim(folder)
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    for variant in variants:
        unet().half().save_pretrained(folder / "unet", variant=variant, **how)


@pytest.mark.parametrize("size", ["10GB", "100KB"])
def test_weights_of_one_variant_are_read(size, tmp_path):
    saved_as(tmp_path, "fp16", max_shard_size=size)
    assert (len(list(tmp_path.glob("unet/*.safetensors"))) > 1) == (size == "100KB")
    assert torch.equal(weights_of(opened(tmp_path)), unet().half().float().conv_in.weight)


def test_of_several_variants_the_weights_without_a_name_are_taken_or_none(tmp_path):
    saved_as(tmp_path, "fp16", "bf16")
    with pytest.raises(click.ClickException, match="has its weights as bf16, fp16; leave one of them"):
        opened(tmp_path)
    unet().save_pretrained(tmp_path / "unet")
    assert torch.equal(weights_of(opened(tmp_path)), unet().conv_in.weight)


@pytest.mark.parametrize("left", [0, 5, 1000, -1])
def test_damaged_weights_are_called_so(left, tmp_path):
    ddim(tmp_path)
    (path,) = tmp_path.glob("unet/*.safetensors")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(
        click.ClickException, match=f"{path.name} is damaged or not whole, get it anew"
    ) as found:
        opened(tmp_path)
    assert "save them as" not in found.value.message


def test_what_the_output_means_is_part_of_the_bases_identity(tmp_path):
    ddim(tmp_path / "eps"), ddim(tmp_path / "v", prediction_type="v_prediction")
    ids = {bases.base_of(f"diffusers:{tmp_path / name}", DIGITS)[1]["sha256"] for name in ("eps", "v")}
    assert len(ids) == 2


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def test_plain_tensors_in_a_bin_file_are_read_and_a_pickle_that_runs_code_is_refused(tmp_path):
    theirs = ddim(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    path = tmp_path / "unet" / "diffusion_pytorch_model.bin"
    torch.save(theirs.unet.state_dict(), path)
    torch.testing.assert_close(drawn(opened(tmp_path), "leading"), drawn_by(theirs), rtol=0, atol=1e-5)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(click.ClickException, match="nothing but plain tensors is unpickled; save them as"):
        opened(tmp_path)


def test_what_cannot_be_a_base_is_refused_in_a_sentence(tmp_path, monkeypatch):
    ddim(tmp_path / "good")

    def broken(name: str, file: str, **changes):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "good", folder)
        config = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps(config))
        return folder

    scheduler, net = "scheduler/scheduler_config.json", "unet/config.json"
    refused = {
        broken("a", scheduler, prediction_type="flow"): "predicts 'flow'; epsilon",
        broken("b", scheduler, beta_schedule="laplace"): "has the betas 'laplace'",
        broken("c", net, _class_name="UNet2DConditionModel"): "only UNet2DModel is read",
        broken("d", net, layers_per_block=2): "are not those of its config.json",
        broken("g", net, num_class_embeds=10): "1 differ, class_embedding.weight first",
        broken("e", scheduler, _class_name="ScoreSdeVeScheduler"): "how it was trained cannot be told",
        broken(
            "h", scheduler, _class_name="EDMEulerScheduler", prediction_type="sample"
        ): "predicts 'sample'; epsilon, v_prediction are read with EDM",
        broken("f", net, sample_size=16): r"for shape \(1, 16, 16\), and digits has \(1, 8, 8\)",
        tmp_path: "is not a pipeline of diffusers: it lacks unet/config.json",
        tmp_path / "nowhere": "there is no folder",
    }
    for folder, sentence in refused.items():
        with pytest.raises(click.ClickException, match=sentence):
            opened(folder)

    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(click.ClickException, match=r"cannot be had from the hub .*; download it elsewhere"):
        opened("google/ddpm-cifar10-32")


def test_what_is_trained_here_gives_the_same_images_in_diffusers(tmp_path):
    folder = tmp_path / "pipeline"
    result = bench("export", "digits", "ddpm@256", folder)
    assert result.exit_code == 0, result.output
    pipeline = diffusers.DDIMPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    base, _ = bases.base_of("ddpm@256", DIGITS)
    theirs, ours = drawn_by(pipeline), drawn(base, "leading")
    assert torch.equal((255 * theirs).round(), (255 * ours).round())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn(opened(folder), "leading"), theirs, rtol=0, atol=1e-5)


def test_a_process_that_is_not_linear_is_exported_by_its_betas(tmp_path):
    ddim(tmp_path / "first", prediction_type="v_prediction", **PROCESSES["cosine"])
    base = opened(tmp_path / "first")
    pipelines.exported(base, tmp_path / "second")
    again = opened(tmp_path / "second")
    assert again.form == "v"
    torch.testing.assert_close(drawn(again, "leading"), drawn(base, "leading"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("ends", ENDS)
def test_a_process_that_begins_or_ends_elsewhere_is_exported_as_it_is(ends, tmp_path):
    ddim(tmp_path / "first", timestep_spacing="leading", **ends)
    base = opened(tmp_path / "first")
    pipelines.exported(base, tmp_path / "second")
    theirs = diffusers.DDIMPipeline.from_pretrained(tmp_path / "second")
    assert {name: theirs.scheduler.config[name] for name in ends} == ends
    theirs.set_progress_bar_config(disable=True)
    torch.testing.assert_close(drawn(base, "leading"), drawn_by(theirs), rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn(opened(tmp_path / "second"), "leading"), drawn(base, "leading"))


def test_what_diffusers_has_no_pipeline_for_is_not_exported(tmp_path):
    result = bench("export", "digits", "denoiser@256", tmp_path / "out")
    assert result.exit_code == 1 and "train the base ddpm" in result.output
