"""Files appear whole or not at all."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pictures import (
    animation,
    encoded,
    photo,
    picture,
)

from hasn_cli.errors import HasnError, ImageError, OutputError
from hasn_cli.images import EncodeOptions, Frame, open_picture, write_picture


def test_nothing_is_left_behind_when_a_frame_fails(tmp_path):
    class Cancelled(Exception):
        pass

    def frames():
        yield Frame(photo(), 10.0)
        raise Cancelled

    for format in ("png", "gif", "webp", "avif", "tiff"):
        film = picture(photo(), format, frames=frames(), frame_count=2, loop=0, paged=format == "tiff")
        with pytest.raises(Cancelled):
            write_picture(film, tmp_path / "out", format, EncodeOptions())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays_until_the_new_one_is_complete(tmp_path):
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    target.chmod(0o640)

    def frames():
        assert target.read_bytes() == b"old"
        yield Frame(photo())

    write_picture(picture(photo(), frames=frames()), target, "png", EncodeOptions())
    assert open_picture(target).size == (48, 64)
    assert target.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has another kind of permissions")
def test_a_new_file_gets_the_permissions_of_new_files(tmp_path):
    (tmp_path / "model").touch()
    write_picture(picture(photo()), tmp_path / "out.png", "png", EncodeOptions())
    assert (tmp_path / "out.png").stat().st_mode == (tmp_path / "model").stat().st_mode


def test_the_reason_for_a_failure_is_kept(tmp_path):
    data = encoded(picture(photo()), "jpeg")
    broken = replace(open_picture(encoded(picture(photo()), "ppm")[:-9], name="cut"), format="ppm")
    for target in (tmp_path / "out.png", io.BytesIO()):
        with pytest.raises(ImageError) as caught:
            write_picture(broken, target, "png", EncodeOptions())
        assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(ImageError, match="xcf"):
        write_picture(open_picture(data), tmp_path / "out", "xcf", EncodeOptions())


def test_a_file_that_vanishes_is_reported_as_missing(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(photo())))
    found = open_picture(path)
    path.unlink()
    with pytest.raises(ImageError, match="no such file"):
        list(found.frames)


def test_an_unwritable_target_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="No such file"):
        write_picture(picture(photo()), tmp_path / "no" / "where.png", "png", EncodeOptions())


def test_a_full_disk_is_an_output_error_and_leaves_nothing():
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    with full.open("wb", buffering=0) as stream, pytest.raises(OutputError, match="No space"):
        write_picture(picture(photo()), stream, "png", EncodeOptions())


def test_a_stream_gets_its_bytes_only_at_the_end():
    class Stream(io.BytesIO):
        writes = 0

        def write(self, data):
            self.writes += 1
            return super().write(data)

    stream = Stream()
    write_picture(animation(), stream, "png", EncodeOptions())
    assert stream.writes == 1
    assert open_picture(stream.getvalue()).frame_count == 3


def test_image_and_output_errors_are_hasn_errors():
    assert issubclass(ImageError, HasnError) and issubclass(OutputError, HasnError)
