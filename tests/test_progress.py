"""What a run says of itself while it goes on."""

import pytest

from bench import progress
from bench.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands where its first item says."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_two_trainings_at_once_are_each_told_of_with_the_time_they_still_take(clock, capsys):
    with Progress() as told:
        for seconds in range(0, 61, 5):
            clock[0] = float(seconds)
            told.report("training a", 100 + seconds, 1_000, 0.5)
            told.report("training b", 10 * seconds, 1_000, 0.25)
    said = capsys.readouterr().err
    assert said.count("training a: ") == said.count("training b: ") == 3
    assert "training a: 150 of 1,000 images, loss 0.5000, about 850 s left" in said  # it was begun before
    assert "training b: 500 of 1,000 images, loss 0.2500, about 50 s left" in said


def test_looking_at_images_is_told_of_where_it_takes_long_and_not_where_it_is_quick(clock, capsys):
    with Progress() as told:
        for seen in range(0, 101, 10):
            clock[0] = seen / 10
            told.report("digits at the training images", seen, 100)
        assert not capsys.readouterr().err
        for seen in range(0, 101, 10):
            clock[0] = 100.0 + seen
            told.report("inception at the training images", seen, 100)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "inception at the training images: 30 of 100 images, about 70 s left"
    assert last == "inception at the training images: 100 of 100 images"


def test_a_training_of_many_short_parts_says_no_more_than_a_long_one(clock, capsys):
    with Progress() as told:
        for part in range(40):
            for seen in (50, 100):
                clock[0] = part + seen / 200
                told.report("training a", seen, 100, 0.5)
    assert capsys.readouterr().err.count("training a: ") == 2
