"""Read PyTorch's own files (`.pth`, `.pt`, `.ckpt`) as data: tensors and plain values, and nothing else.

`torch.load(weights_only=True)` runs no code from the file, but it calls known constructors with any arguments, so a
file of one kilobyte can ask for any amount of memory. It also reads zip archives with a library of its own, which may
find other content than a check with `zipfile`. So this module carries out the few instructions that a file of tensors
needs: `pickletools` parses the pickle, only `zipfile` reads the archive, and every tensor must lie within the bytes of
the file. Time and memory depend only on the file's size.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from hasn_cli.errors import WeightsError

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"
ENCRYPTED = 1  # a flag of zip members
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001  # the format before PyTorch 1.6, still available
MOST_DIMENSIONS = 8
OTHER_FORM = "ask its author for a .safetensors file"

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_pytorch_file(path: Path, most_pickle: int) -> object:
    """Read a file from `torch.save` that contains only tensors and plain values in dicts, lists and tuples.

    Args:
        path: the file, small enough to be read into memory.
        most_pickle: the limit in bytes for the pickle, which describes the tensors.

    Returns:
        The object. Every tensor is on the CPU, and every kind of dict is a plain dict.

    Raises:
        WeightsError: the file is damaged, compressed, or contains anything else.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    try:
        if data.startswith(ZIP_MAGIC):
            return _read_archive(_members(data, path), path, most_pickle)
        return _read_legacy(data, path, most_pickle)
    except WeightsError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise WeightsError(f"{path} is damaged ({_first_line(error)})", "download or copy it again") from None


def _members(data: bytes, path: Path) -> dict[str, bytes]:
    """Every member of a zip archive, which must be complete and not compressed.

    PyTorch does not compress tensors. In a compressed archive, a small file could grow to gigabytes when read.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
                raise WeightsError(f"{path} is compressed, which PyTorch's files are not", OTHER_FORM)
            names = {info.filename for info in infos}
            if len(names) < len(infos) or any(info.flag_bits & ENCRYPTED for info in infos):
                raise WeightsError(f"{path} is not an archive from PyTorch", OTHER_FORM)
            if sum(info.file_size for info in infos) > len(data):  # members that share their bytes
                raise WeightsError(f"{path} contains less than it claims", OTHER_FORM)
            return {info.filename: archive.read(info) for info in infos}
    except WeightsError:
        raise
    except Exception as error:  # NotImplementedError, struct.error, …: members that cannot be checked are not read
        raise WeightsError(
            f"{path} is damaged: its archive cannot be read ({_first_line(error)})", "download or copy it again"
        ) from None


def _read_archive(members: Mapping[str, bytes], path: Path, most_pickle: int) -> object:
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise WeightsError(f"{path} is not an archive from PyTorch", OTHER_FORM)
    folder = pickles[0].removesuffix("data.pkl")
    if members.get(f"{folder}byteorder", b"little") != b"little":
        raise WeightsError(f"{path} was written on a big-endian machine", OTHER_FORM)

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        return _flat(members[f"{folder}data/{key}"], dtype, count)

    return _Machine(path, _Storages(storage)).run(io.BytesIO(_limited(members[pickles[0]], path, most_pickle)))


def _read_legacy(data: bytes, path: Path, most_pickle: int) -> object:
    """Read the old format: a magic number, a version, facts about the machine, the object, its storages' keys; data."""
    stream = io.BytesIO(data[: 2 * most_pickle])  # all of the pickles
    known: dict[str, torch.dtype] = {}

    def remember(key: str, dtype: torch.dtype, count: int) -> Tensor:
        known[key] = dtype
        return torch.empty(0, dtype=dtype)

    machine = _Machine(path, _Storages(remember), shape_only=True)
    magic = machine.run(stream)
    if magic != LEGACY_MAGIC or machine.run(stream) != LEGACY_VERSION:
        raise WeightsError(f"{path} is damaged, or contains more than tensors", OTHER_FORM)
    system = machine.run(stream)
    if not (isinstance(system, dict) and system.get("little_endian")):
        raise WeightsError(f"{path} was written on a big-endian machine", OTHER_FORM)
    start = stream.tell()
    machine.run(stream)
    _limited(data[start : stream.tell()], path, most_pickle)
    after = stream.tell()
    keys = machine.run(stream)
    stored = _legacy_storages(data, stream.tell(), keys, known)

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        return _flat(stored[key], dtype, count)

    return _Machine(path, _Storages(storage)).run(io.BytesIO(data[start:after]))


def _legacy_storages(data: bytes, position: int, keys: object, known: Mapping[str, torch.dtype]) -> dict[str, bytes]:
    """The bytes of each storage. A storage consists of the number of elements in 8 bytes, and the elements."""
    if not isinstance(keys, list) or sorted(keys) != sorted(known):
        raise ValueError("the storages are not those that the tensors need")
    stored = {}
    for key in keys:
        (count,) = struct.unpack_from("<q", data, position)
        end = position + 8 + count * known[key].itemsize
        if count < 0 or end > len(data):
            raise ValueError("the file ends too early")
        stored[key] = data[position + 8 : end]
        position = end
    return stored


def _limited(pickled: bytes, path: Path, most: int) -> bytes:
    if len(pickled) > most:
        raise WeightsError(
            f"{path} describes its tensors in {len(pickled)} bytes, over the limit of {most}", OTHER_FORM
        )
    return pickled


def _flat(data: bytes, dtype: torch.dtype, count: int) -> Tensor:
    """Turn a storage into a tensor of one dimension."""
    if count * dtype.itemsize != len(data):
        raise ValueError(f"a storage of {count} numbers has {len(data)} bytes")
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


class _Storages:
    """Storages by their keys. Each is loaded once, even if several tensors share it."""

    def __init__(self, load: Callable[[str, torch.dtype, int], Tensor]) -> None:
        self._load = load
        self._loaded: dict[str, Tensor] = {}

    def __call__(self, identifier: object) -> Tensor:
        """The storage that a pickle refers to as `("storage", type, key, device, count, …)`."""
        if not isinstance(identifier, tuple) or not 5 <= len(identifier) <= 6 or identifier[0] != "storage":
            raise ValueError("a reference to something that is not a storage")
        _, kind, key, _, count = identifier[:5]
        if not (isinstance(kind, _Global) and isinstance(kind.value, torch.dtype)):
            raise ValueError("a storage of an unknown type")
        if type(key) is not str or type(count) is not int or count < 0:
            raise ValueError("a storage without a key or a size")
        if key not in self._loaded:
            self._loaded[key] = self._load(key, kind.value, count)
        if self._loaded[key].dtype != kind.value:
            raise ValueError(f"storage {key} has two types")
        return self._loaded[key]


@dataclass(frozen=True)
class _Global:
    """What a name that a pickle may import stands for: a function of this module, or a dtype."""

    value: Callable[..., object] | torch.dtype


class _Machine:
    """Carries out the instructions of pickles. It imports nothing, and calls only functions of this module."""

    def __init__(self, path: Path, storages: _Storages, *, shape_only: bool = False) -> None:
        self._path = path
        self._storages = storages
        tensor = (lambda *_: None) if shape_only else _tensor
        parameter = (lambda *_: None) if shape_only else _parameter
        self._globals = {
            "collections OrderedDict": _Global(_dict),
            "collections Counter": _Global(_dict),
            "torch Size": _Global(_tuple),
            "torch device": _Global(lambda *_: None),
            "torch._utils _rebuild_tensor": _Global(tensor),
            "torch._utils _rebuild_tensor_v2": _Global(tensor),
            "torch._utils _rebuild_parameter": _Global(parameter),
        } | {f"torch {name}": _Global(dtype) for name, dtype in _DTYPES.items()}

    def run(self, stream: io.BytesIO) -> object:
        """Carry out one pickle, from the current position of `stream` to the pickle's end."""
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(stream):
            step = _STEPS.get(opcode.name)
            if step is not None:
                step(self, argument)
            elif opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name])
            elif opcode.name in _VALUES:
                self._stack.append(argument)
            elif opcode.name == "STOP":
                return self._stack.pop()
            elif opcode.name != "PROTO":
                raise WeightsError(f"{self._path} is damaged, or contains more than tensors", OTHER_FORM)
        raise ValueError("the pickle ends too early")

    def _mark(self, _: object) -> None:
        self._marks.append(len(self._stack))

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        found = self._stack[start:]
        del self._stack[start:]
        return found

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _new_dict(self, _: object) -> None:
        self._stack.append({})

    def _new_list(self, _: object) -> None:
        self._stack.append([])

    def _tuple(self, _: object) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _tuple_of(self, count: int) -> None:
        values = tuple(self._stack[-count:])
        del self._stack[-count:]
        self._stack.append(values)

    def _append(self, _: object) -> None:
        value = self._stack.pop()
        self._top(list).append(value)

    def _appends(self, _: object) -> None:
        values = self._since_mark()
        self._top(list).extend(values)

    def _set_item(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._top(dict)[_key(key)] = value

    def _set_items(self, _: object) -> None:
        values = self._since_mark()
        table = self._top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            table[_key(key)] = value

    def _global(self, name: str) -> None:
        found = self._globals.get(name)
        if found is None:
            self._refuse(name)
        self._stack.append(found)

    def _refuse(self, name: str) -> NoReturn:
        if name.startswith("torch._utils _rebuild"):
            message = f"{self._path} contains a kind of tensor that HASN does not use ({name.rpartition(' ')[2]})"
        else:
            message = f"{self._path} contains more than tensors and is refused: loading it could run any code"
        raise WeightsError(message, OTHER_FORM)

    def _persistent(self, _: object) -> None:
        self._stack.append(self._storages(self._stack.pop()))

    def _reduce(self, _: object) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, _Global) or isinstance(function.value, torch.dtype):
            raise ValueError("it calls something that is not a function")
        if type(arguments) is not tuple:
            raise ValueError("it calls a function with invalid arguments")
        self._stack.append(function.value(*arguments))

    def _build(self, _: object) -> None:
        """Discard the attributes of a dict, such as the versions of modules. They are not needed here."""
        self._stack.pop()
        self._top(dict)

    def _top(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise ValueError(f"it fills something that is not a {kind.__name__}")
        return self._stack[-1]


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "EMPTY_DICT": _Machine._new_dict,
    "EMPTY_LIST": _Machine._new_list,
    "TUPLE": _Machine._tuple,
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "GLOBAL": _Machine._global,
    "BINPERSID": _Machine._persistent,
    "REDUCE": _Machine._reduce,
    "BUILD": _Machine._build,
}
_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINSTRING")


def _key(key: object) -> object:
    """Check that a dict's key is of a simple type. Others are refused, since hashing nested tuples is recursive."""
    if not isinstance(key, str | int | float | None):
        raise ValueError(f"a {type(key).__name__} as a key")
    return key


def _dict(pairs: object = ()) -> dict[Any, Any]:
    if not isinstance(pairs, list | tuple):
        raise ValueError("a dict without pairs")
    return {_key(key): value for key, value in pairs}


def _tuple(values: object) -> tuple[Any, ...]:
    if type(values) is not tuple:
        raise ValueError("an invalid size")
    return values


def _tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> Tensor:
    """Build a tensor that lies within its storage."""
    if not isinstance(storage, Tensor) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor without a storage, size or stride")
    if len(size) != len(stride) or len(size) > MOST_DIMENSIONS:
        raise ValueError(f"a tensor of {len(size)} dimensions")
    if any(type(number) is not int or not 0 <= number < 1 << 62 for number in (offset, *size, *stride)):
        raise ValueError("a tensor with an invalid size")
    # as_strided checks that the tensor lies within its storage
    return storage.as_strided(size, stride, offset)  # type: ignore[arg-type] # the checks above guarantee the types


def _parameter(data: object, *_: object) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter that is not a tensor")
    return data


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
