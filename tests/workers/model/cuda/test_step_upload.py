"""A step's numbers reach the device by one copy, and no step writes what the copy before still reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from workers.model.cuda.step_upload import StepUpload


@pytest.fixture
def upload(strict_device: Any) -> StepUpload:
    return StepUpload(strict_device(), 256)


def test_numbers_of_all_types_arrive(upload: StepUpload) -> None:
    columns = [np.arange(5, dtype=dtype) - 2 for dtype in (np.int32, np.int64, np.float32, np.float64)]
    upload.begin()
    sections = [upload.put(each) for each in columns]
    upload.send()
    for section, column in zip(sections, columns, strict=True):
        assert upload.on_device(section).tolist() == column.tolist()


def test_equal_sections_lie_at_the_same_place_in_every_step(upload: StepUpload) -> None:
    upload.begin()
    first = [upload.put(np.zeros(3, np.int32)), upload.put(np.zeros((2, 5)))]
    captured = upload.on_device(first[1])
    upload.send()
    upload.begin()
    assert [upload.put(np.ones(3, np.int32)), upload.put(np.full((2, 5), 7.0))] == first
    upload.send()
    assert captured.tolist() == [[7.0] * 5] * 2


def test_sections_of_any_length_begin_where_kernels_load_sixteen_bytes(upload: StepUpload) -> None:
    upload.begin()
    sections = [upload.put(np.zeros(length, np.int32)) for length in (1, 3, 5, 4, 7)]
    upload.send()
    assert all(upload.on_device(section).data_ptr() % 16 == 0 for section in sections)


def test_many_steps_never_write_what_is_under_way(upload: StepUpload) -> None:
    for step in range(6):
        upload.begin()
        section = upload.put(np.full(4, step))
        upload.send()
        assert upload.on_device(section).tolist() == [step] * 4


def test_a_buffer_waits_for_the_copy_that_reads_it(upload: StepUpload, strict_device: Any) -> None:
    upload._sent = [None, None]
    upload.begin()
    upload.put(np.zeros(4))
    upload.send()
    upload._sent = [None, None]  # as if nobody kept the event
    upload.begin()
    upload.send()
    upload.begin()
    upload.put(np.ones(4))
    with pytest.raises(AssertionError, match="written again before its copy was waited for"):
        upload.send()


def test_a_step_beyond_the_largest_is_refused(upload: StepUpload) -> None:
    upload.begin()
    with pytest.raises(AssertionError, match="256 bytes was not expected"):
        upload.put(np.zeros(40))
