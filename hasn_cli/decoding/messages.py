"""The messages between this process and one that decodes: plain values, checked when they arrive.

A hostile file may take over a decoder, which could then send anything. So nothing is unpickled: a message is JSON and
raw bytes, and a picture's header is built field by field, each checked against the type that its class declares.

A message consists of the length of the JSON (4 bytes, little-endian), the JSON `{"content": …, "blobs": [length, …]}`,
and the blobs. The pixels of a frame follow its message.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from hasn_cli.images.compression import Compression
from hasn_cli.images.picture import Frame, Metadata, Picture, Shape, Text

MOST_JSON = 64 << 20
MOST_BLOBS = 1 << 30  # bytes in one message
PIECE = 1 << 20
DTYPES = {name: np.dtype(name) for name in ("uint8", "uint16", "float32")}
NOT_SENT = {Picture: "frames", Frame: "pixels"}
_SIMPLE = (bool, int, float, str, NoneType)
CLASSES = {cls.__name__: cls for cls in (Picture, Frame, Metadata, Shape, Text, Compression)}

Buffer = bytes | bytearray | memoryview
Read = Callable[[memoryview], int]
"""Fills a buffer with the bytes that have arrived and returns their number, like `readinto`; 0 at the end."""
Write = Callable[[Buffer], object]
"""Writes all of a buffer."""


class InvalidMessage(ValueError):
    """The other side sent something that is not a valid message."""


def send(write: Write, content: dict[str, Any], blobs: Sequence[Buffer] = ()) -> None:
    """Write one message."""
    text = json.dumps({"content": content, "blobs": [len(blob) for blob in blobs]}).encode()
    write(struct.pack("<I", len(text)) + text)
    for blob in blobs:
        write(blob)


def receive(read: Read) -> tuple[dict[str, Any], list[bytes]]:
    """Read one message.

    Raises:
        EOFError: there are no more messages.
        InvalidMessage: the message is invalid.
    """
    (length,) = struct.unpack("<I", _exactly(read, 4))
    if length > MOST_JSON:
        raise InvalidMessage("the message is too long")
    try:
        message = json.loads(_exactly(read, length))
        content, lengths = message["content"], message["blobs"]
        sane = all(type(count) is int and count >= 0 for count in lengths) and sum(lengths) <= MOST_BLOBS
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InvalidMessage(str(error)) from None
    if not isinstance(content, dict) or not sane:
        raise InvalidMessage("the message has no content, or too much")
    return content, [_exactly(read, count) for count in lengths]


def fill(read: Read, buffer: memoryview) -> None:
    """Read until a buffer is full.

    Raises:
        EOFError: the stream ended first.
    """
    while buffer:
        count = read(buffer)
        if not count:
            raise EOFError
        buffer = buffer[count:]


def _exactly(read: Read, count: int) -> bytes:
    """Read `count` bytes. Memory is taken only as they arrive."""
    found = bytearray()
    while len(found) < count:
        piece = bytearray(min(PIECE, count - len(found)))
        fill(read, memoryview(piece))
        found += piece
    return bytes(found)


def to_plain(value: object, blobs: list[Buffer]) -> Any:
    """Turn a value of a header into JSON-able values. Bytes are appended to `blobs`."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        blobs.append(bytes(value))
        return {"blob": len(blobs) - 1}
    if isinstance(value, tuple | list):
        return [to_plain(entry, blobs) for entry in value]
    if isinstance(value, np.dtype):
        return value.name
    if is_dataclass(value) and type(value).__name__ in CLASSES:
        skipped = NOT_SENT.get(type(value))
        names = [field.name for field in fields(value) if field.init and field.name != skipped]
        return {name: to_plain(getattr(value, name), blobs) for name in names}
    raise TypeError(f"a {type(value).__name__} cannot be sent")


T = TypeVar("T")


def header_from(cls: type[T], plain: object, blobs: Sequence[bytes], given: dict[str, Any]) -> T:
    """Rebuild the object that `to_plain` took apart. `given` contains the field that is not sent.

    Raises:
        InvalidMessage: a field is unknown, missing, or of another type than its class declares.
    """
    if not isinstance(plain, dict):
        raise InvalidMessage(f"not a {cls.__name__}")
    hints: dict[str, Any] = _hints(cls)  # type: ignore[arg-type] # classes are hashable, which mypy does not see here
    if unknown := set(plain) - set(hints) | set(plain) & set(given):
        raise InvalidMessage(f"{cls.__name__} has no field {sorted(unknown)[0]}")
    values = {name: _from_plain(value, hints[name], blobs) for name, value in plain.items()}
    try:
        return cls(**values, **given)
    except (TypeError, ValueError) as error:
        raise InvalidMessage(str(error)) from None


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _from_plain(plain: object, hint: Any, blobs: Sequence[bytes]) -> Any:
    """Turn a plain value into one of the type `hint`."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return _from_union(plain, get_args(hint), blobs)
    if origin is tuple and isinstance(plain, list):
        return _tuple_from(plain, get_args(hint), blobs)
    if hint is bytes and isinstance(plain, dict) and type(plain.get("blob")) is int:
        if 0 <= plain["blob"] < len(blobs):
            return blobs[plain["blob"]]
    elif type(plain) in ((int, float) if hint is float else (hint,)) and hint in _SIMPLE:
        return plain
    elif origin is np.dtype and isinstance(plain, str) and plain in DTYPES:
        return DTYPES[plain]
    elif is_dataclass(hint) and isinstance(hint, type):
        return header_from(hint, plain, blobs, {})
    raise InvalidMessage(f"a {type(plain).__name__} instead of {hint}")


def _from_union(plain: object, hints: Sequence[Any], blobs: Sequence[bytes]) -> Any:
    for hint in hints:
        try:
            return _from_plain(plain, hint, blobs)
        except InvalidMessage:
            continue
    raise InvalidMessage(f"a {type(plain).__name__} instead of one of {hints}")


def _tuple_from(plain: list[object], hints: Sequence[Any], blobs: Sequence[bytes]) -> tuple[Any, ...]:
    if len(hints) == 2 and hints[1] is ...:
        return tuple(_from_plain(entry, hints[0], blobs) for entry in plain)
    if len(plain) != len(hints):
        raise InvalidMessage(f"{len(plain)} values instead of {len(hints)}")
    return tuple(_from_plain(entry, hint, blobs) for entry, hint in zip(plain, hints, strict=True))
