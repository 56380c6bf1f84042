"""What a plan will cost: evaluations, trainings, and about how long they take here."""

import time

import numpy as np
import torch

from bench import registry, store
from bench.job import Cell
from bench.metrics import references
from bench.models import bases, recipes
from bench.models.kept import home, lies
from bench.running.plan import Plan
from bench.running.planning import by_model, spec_of
from bench.running.worker import training_of

LOOKED = 16  # images, to tell an extractor's speed
TRAINED = 3  # evaluations that an image in training takes the time of: one forward, two backward


def described(plan: Plan) -> str:
    """The plan in words: what would be drawn, and what it costs."""
    cost = estimate(plan)
    lines = [f"{cell.method:24} {cell.nfe:5} NFE  seed {cell.seed}  {cell.ask}" for cell in plan.todo]
    drawing = f"{cost['cells']:,} of {len(plan.cells):,} cells to run: {cost['evaluations']:,} evaluations"
    drawing += f", about {cost['seconds'] / 60:.1f} minutes here"
    if cost["trainings"]:
        number = f"{cost['trainings']:,} training" + "s" * (cost["trainings"] > 1)
        drawing += f"; and {number} of {cost['images']:,} images in all"
        if plan.data.exact is None:  # else the trial was of no network such as is trained
            drawing += f", about {cost['training_seconds'] / 60:.0f} minutes"
    if cost["looking_seconds"] > 60:
        looks = f"{plan.extractor.name} looks at {cost['looks']:,} images"
        drawing += f"; and {looks}, about {cost['looking_seconds'] / 60:.0f} minutes"
    return "\n".join([*lines, drawing])


def estimate(plan: Plan) -> dict[str, float]:
    """What a plan will cost: network evaluations, trainings and their images, and the seconds of both by the
    speed of rows measured here before (or of a trial batch).
    """
    evaluations = sum(cell.nfe * cell.samples for cell in plan.todo)
    rows = [
        row
        for row in store.read(plan.request.results)
        if row.data == plan.request.data and row.seconds and row.nfe
    ]
    speeds = [row.nfe * row.samples / row.seconds for row in rows if row.ask == "sample"]
    speed = float(np.median(speeds)) if speeds else trial_speed(plan)
    images, looked_at = trainings(plan), looks(plan)
    return {
        "cells": len(plan.todo),
        "evaluations": evaluations,
        "seconds": evaluations / speed,
        "trainings": len(images),
        "images": sum(images),
        "training_seconds": TRAINED * sum(images) / speed,
        "looks": looked_at,
        "looking_seconds": looked_at / looks_a_second(plan) if looked_at else 0.0,
    }


def looks(plan: Plan) -> int:
    """The images that the plan's extractor has still to see: those drawn, and the training images where it
    has not seen them yet.
    """
    if plan.extractor is None:
        return 0
    drawn = sum(cell.samples for cell in plan.todo if cell.ask == "sample")
    first = drawn and plan.compares and not references.known(plan.data, plan.extractor)
    return drawn + (len(plan.data.train) if first else 0)


def looks_a_second(plan: Plan) -> float:
    """Images that the plan's extractor sees a second, by one batch."""
    stored = plan.data.train[:LOOKED]
    plan.extractor(stored)
    started = time.perf_counter()
    plan.extractor(stored)
    return len(stored) / (time.perf_counter() - started)


def trainings(plan: Plan) -> list[int]:
    """The budgets, in images, of all trainings that the cells left to do need and that were not done yet."""
    known = registry.plugins(plan.site.plugin_files)
    request = plan.request
    shared = {name for method in {cell.method for cell in plan.todo} for name in known[method].recipes}
    specs = [spec_of(name, request) for name in shared]
    missing = [bases.untrained_images(spec, plan.data, request.train_seed) for spec in specs]

    def trained(cell: Cell) -> bool:
        data = plan.data.seen_by(known[cell.method].kinds)
        return lies(home(cell.method, training_of(cell, data, plan.site)))

    own = [cell.images for cell, *_ in by_model(plan.todo, plan.site) if not trained(cell)]
    return [images for images in missing if images] + own


def trial_speed(plan: Plan) -> float:
    """Rows a second of the base network, by one batch."""
    mixture = plan.data.exact is not None and plan.data.kind in ("image", "vector")
    model = recipes.exact_denoiser(plan.data) if mixture else recipes.new_denoiser(plan.data)
    x = model.prior(64)
    with torch.no_grad():
        model(x, model.schedule.t_max)
        started = time.perf_counter()
        model(x, model.schedule.t_max)
    return 64 / (time.perf_counter() - started)
