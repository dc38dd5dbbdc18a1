"""Tiles cover the picture once, and blending equal values changes nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasn_cli.errors import UsageError
from hasn_cli.inference.tiling import Canvas, Output, check_tile, cut, quantised


@given(length=st.integers(1, 2000), tile=st.integers(24, 400), third=st.integers(0, 8))
def test_spans_cover_every_row_and_share_what_they_should(length, tile, third):
    overlap = tile * third // 24
    spans = cut(length, tile, overlap)
    assert spans[0].start == 0 and spans[-1].stop == length
    assert all(span.stop - span.start <= tile for span in spans)
    assert all(before.stop - after.start == overlap for before, after in itertools.pairwise(spans))
    assert all(before.stop <= after.start for before, after in zip(spans, spans[2:], strict=False))


@given(length=st.integers(30, 500), tile=st.integers(24, 100), scale=st.sampled_from([2, 3, 4]))
def test_windows_add_up_to_one_everywhere(length, tile, scale):
    total = np.zeros(length * scale)
    for span in cut(length, tile, tile // 3):
        total[span.start * scale : span.stop * scale] += span.window(scale)
    assert np.allclose(total, 1, atol=1e-6)


def lay(canvas: Canvas, picture: np.ndarray, steps: int) -> None:
    """Give the canvas each tile of `picture` (sH×sW×C), `steps` SR rows at a time."""
    s = canvas.scale
    for i, j in canvas.tiles():
        row, column = canvas.rows[i], canvas.columns[j]
        tile = picture[row.start * s : row.stop * s, column.start * s : column.stop * s]
        for top in range(0, len(tile), steps):
            canvas.put((i, j), top, tile[top : top + steps].copy())


@settings(deadline=None)
@given(
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    tile=st.integers(24, 60),
    overlap=st.integers(0, 8),
    steps=st.integers(1, 50),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
)
def test_tiles_of_one_picture_blend_to_that_picture(height, width, tile, overlap, steps, dtype):
    picture = np.random.default_rng(height).random((2 * height, 2 * width, 3), dtype=np.float32)
    expected = quantised(picture.copy(), np.dtype(dtype))
    result = np.zeros_like(expected)
    canvas = Canvas(Output(result), cut(height, tile, overlap), cut(width, tile, overlap), 2, 3)
    lay(canvas, picture, steps)
    assert np.abs(result.astype(float) - expected).max() <= (1e-6 if dtype is np.float32 else 1)


def test_tiles_that_disagree_are_blended_smoothly():
    rows, columns = cut(40, 40, 12), cut(60, 36, 12)
    result = np.zeros((80, 120, 1), np.float32)
    canvas = Canvas(Output(result), rows, columns, 2, 1)
    for tile in canvas.tiles():
        row, column = canvas.rows[tile[0]], canvas.columns[tile[1]]
        shape = ((row.stop - row.start) * 2, (column.stop - column.start) * 2, 1)
        canvas.put(tile, 0, np.full(shape, tile[1], np.float32))
    line = result[7, :, 0]
    assert line[0] == 0 and line[-1] == 1
    assert (np.diff(line) >= 0).all() and np.diff(line).max() < 0.08  # a step of 1 over 24 pixels


def test_values_are_rounded_and_clipped_to_integers_and_floats_are_unchanged():
    values = np.array([[[-0.1, 0.5, 1.2]]], np.float32)
    assert quantised(values.copy(), np.dtype(np.uint8)).tolist() == [[[0, 128, 255]]]
    assert quantised(values.copy(), np.dtype(np.uint16)).tolist() == [[[0, 32768, 65535]]]
    assert quantised(values.copy(), np.dtype(np.float32)).tolist() == values.tolist()


@pytest.mark.parametrize(("tile", "overlap"), [(10, None), (-4, None), (64, 22), (None, 65), (64, -1)])
def test_impossible_tiles_are_refused(tile, overlap):
    with pytest.raises(UsageError):
        check_tile(tile, overlap)


def test_spans_of_which_three_would_meet_are_refused():
    with pytest.raises(ValueError, match="cannot share"):
        cut(100, 30, 11)


@pytest.mark.parametrize(("tile", "overlap"), [(None, None), (0, None), (24, 8), (64, 0), (None, 64)])
def test_possible_tiles_are_accepted(tile, overlap):
    check_tile(tile, overlap)
