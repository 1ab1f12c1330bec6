"""News of a model's loading: coarse, in order, and always with an end."""

from __future__ import annotations

import threading

from workers.load_progress import LoadProgress


def test_only_steps_of_ten_per_cent_are_news() -> None:
    progress = LoadProgress()
    heard = []
    for done in range(1, 201):
        progress.update(done, 200)
        if progress.beyond(-1) not in heard:
            heard.append(progress.beyond(-1))
    assert heard == [0, *range(10, 101, 10)]


def test_whoever_waits_hears_of_the_next_step() -> None:
    progress = LoadProgress()
    heard: list[int] = []
    waiting = threading.Thread(target=lambda: heard.append(progress.beyond(0)))
    waiting.start()
    progress.update(3, 10)
    waiting.join(10)
    assert heard == [30]


def test_a_failed_load_ends_the_waiting() -> None:
    progress = LoadProgress()
    progress.update(1, 10)
    progress.finish()
    assert progress.beyond(10) == 100
