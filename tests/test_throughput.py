"""The contenders of the throughput benchmark do the same work; no time is asserted."""

from pathlib import Path

from bench.data import load
from bench.diffusion.training import seeded
from bench.running.worker import Site
from benchmarks import throughput

SITE = Site(Path("."), "cpu", 1, micro_batch=3)


def test_the_bare_loop_draws_what_the_harness_draws():
    data = load("digits")
    model = throughput.network(data)
    x = model.prior(5, seeded(0, 0))
    drawn = throughput.harness(model, data, 5, 3, SITE)()
    plain = data.quantise(throughput.bare_loop(model, x, 3, 3, SITE.execution)())
    assert drawn.shape == plain.shape
    assert float((drawn.float() - plain.float()).abs().max()) <= 1 and drawn.float().std() > 0


def test_the_pipeline_draws_as_many_images_of_the_same_shape():
    assert throughput.pipeline("digits", 2, 1, "cpu")().shape == (2, 8, 8, 1)
