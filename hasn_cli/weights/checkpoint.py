"""A weights file on disk ↔ a HASN network: strict, and safe for files from strangers.

Two containers are read, told apart by their first bytes: safetensors, and PyTorch's own (`.pth`, `.pt`, `.ckpt`), the
latter only as far as `torch.load(weights_only=True)` goes, which builds tensors and runs nothing.
"""

from __future__ import annotations

import os
import pickle
import secrets
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hasn_cli.errors import WeightsError
from hasn_cli.network import HASN, SCALES

StateDict = dict[str, Tensor]

WRAPPERS = ("params_ema", "params", "state_dict")  # the averaged weights before the raw ones
PREFIXES = ("module.", "_orig_mod.")  # left by DistributedDataParallel and torch.compile
ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"
NAMES_CODE = ("Unsupported global", "unsupported GLOBAL")  # torch's words for what a pickle wants to import
NAMED_KEYS = 4  # how many keys an error spells out


def load_state_dict_file(path: Path) -> StateDict:
    """Read the tensors of a weights file, by the names HASN gives them.

    Args:
        path: a safetensors or PyTorch file. `params_ema` is taken before `params` before `state_dict` before the
            file's own top level, and `module.` and `_orig_mod.` prefixes come off.

    Returns:
        Name → tensor on the CPU, as stored (any floating type).

    Raises:
        WeightsError: the file is missing, unreadable, damaged, wants to run code, or holds something else.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise WeightsError(
            f"cannot read weights {path}: {error.strerror or error}", "check the path given to -w"
        ) from None
    if not head:
        raise WeightsError(f"{path} is empty", "download or copy it again")
    is_torch = head.startswith((ZIP_MAGIC, PICKLE_MAGIC))
    return _bare(_read_torch(path) if is_torch else _read_safetensors(path), path)


def network_from_state_dict(
    state: Mapping[str, Tensor], *, origin: str = "the weights", scale: int | None = None
) -> HASN:
    """Build the network that a state dict was saved from, with scale and width read off the shapes.

    Args:
        state: name → tensor, complete.
        origin: what errors call it.
        scale: the scale it must have, or None for any.

    Returns:
        The network in evaluation mode, float32, on the CPU.

    Raises:
        WeightsError: keys are missing or strange (named), shapes do not fit, a value is not finite, or the scale is
            another.
    """
    _refuse_claims(state, origin)
    found, width = _scale_of(state, origin), _width_of(state, origin)
    if scale is not None and found != scale:
        raise WeightsError(f"{origin} is for x{found}, not x{scale}", f"use -s {found}, or other weights")
    with torch.device("meta"):  # shapes first: a file that only claims to be wide is refused before memory is taken
        network = HASN(found, width)
    _check_against(state, network.state_dict(), origin)
    copies = {name: tensor.to("cpu", torch.float32, copy=True).contiguous() for name, tensor in state.items()}
    network.load_state_dict(copies, strict=True, assign=True)
    return network.eval()


def save_network(network: HASN, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a network as safetensors, float32, whole or not at all (a temporary file beside `path`, moved into place).

    Args:
        network: on any device.
        path: the target; an existing file is replaced.
        metadata: more entries for the file's header, which always says architecture, scale and width.

    Raises:
        OSError: the target cannot be written; what was there stays.
    """
    from safetensors.torch import save

    tensors = {name: t.detach().to("cpu", torch.float32).contiguous() for name, t in network.state_dict().items()}
    about = {"architecture": "HASN", "scale": str(network.scale), "num_features": str(network.num_features)}
    write_atomically(path, save(tensors, {**(metadata or {}), **about}))


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that no reader, and no crash, ever meets a part of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # the target is what the user knows of
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    try:
        return load_file(path) if _is_unicode(path) else load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is no weights file, or a damaged one ({error})", "download or copy it again"
        ) from None


def _is_unicode(path: Path) -> bool:
    """Whether the path can be handed to safetensors, which opens no others."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_torch(path: Path) -> object:
    _refuse_compressed(path)
    try:
        # given a path, torch would go by its ending; what it warns of is refused below
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(word in str(error) for word in NAMES_CODE):
            raise WeightsError(
                f"{path} holds more than tensors and is refused: loading it could run any code",
                "ask its author for a .safetensors file",
            ) from None
        raise WeightsError(
            f"{path} is damaged, or holds more than tensors", "copy it again, or ask its author for a .safetensors file"
        ) from None
    except Exception as error:  # a damaged pickle stumbles in any way there is
        raise WeightsError(f"{path} is damaged ({_first_line(error)})", "download or copy it again") from None


def _refuse_compressed(path: Path) -> None:
    """PyTorch stores tensors as they are; in a compressed archive a small file would grow to gigabytes when read."""
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):  # a bare pickle, or damage, which reading it will tell
        return
    if compressed:
        raise WeightsError(f"{path} is compressed, as PyTorch writes no file", "ask its author for a .safetensors file")


def _bare(content: object, path: Path) -> StateDict:
    """Unwrap what training programs put round a state dict."""
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state dict", "save network.state_dict()")
    strays = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strays:
        raise WeightsError(
            f"{path} holds no plain state dict: {_listed(strays)} is no tensor", "save network.state_dict()"
        )
    return {_without_prefix(str(name)): value for name, value in content.items()}


def _without_prefix(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def _refuse_claims(state: Mapping[str, Tensor], origin: str) -> None:
    """No tensor may be empty, or larger than what is stored of it: a small file would grow to gigabytes when copied."""
    hollow = [name for name, tensor in state.items() if not _is_whole(tensor)]
    if hollow:
        raise WeightsError(f"{origin} does not hold what it claims in {_listed(hollow)}", "ask its author for another")


def _is_whole(tensor: Tensor) -> bool:
    if tensor.is_nested or tensor.is_meta or tensor.layout != torch.strided:
        return False
    return 0 < tensor.numel() * tensor.itemsize <= tensor.untyped_storage().nbytes()


def _scale_of(state: Mapping[str, Tensor], origin: str) -> int:
    shape = _shape_of(state, "upsampler.0.weight", origin)
    for scale in SCALES:
        if shape[0] == 3 * scale**2:
            return scale
    raise WeightsError(f"{origin} is for no scale of {SCALES}: upsampler.0.weight gives {shape[0]} channels")


def _width_of(state: Mapping[str, Tensor], origin: str) -> int:
    return _shape_of(state, "conv_1.weight", origin)[0]


def _shape_of(state: Mapping[str, Tensor], name: str, origin: str) -> tuple[int, ...]:
    tensor = state.get(name)
    if tensor is None or tensor.ndim != 4:
        raise WeightsError(f"{origin} is not HASN's: {name} is missing", "hasn loads weights of the HASN network only")
    return tuple(tensor.shape)


def _check_against(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str) -> None:
    missing = [name for name in expected if name not in state]
    strange = [name for name in state if name not in expected]
    if missing or strange:
        parts = [f"missing {_listed(missing)}"] * bool(missing) + [f"unknown {_listed(strange)}"] * bool(strange)
        raise WeightsError(
            f"{origin} does not fit HASN: {'; '.join(parts)}", "hasn loads weights of the HASN network only"
        )
    misfits = [
        f"{k} {list(t.shape)} for {list(expected[k].shape)}" for k, t in state.items() if t.shape != expected[k].shape
    ]
    if misfits:
        raise WeightsError(f"{origin} does not fit HASN: {_listed(misfits)}")
    broken = [name for name, t in state.items() if not (t.is_floating_point() and torch.isfinite(t.float()).all())]
    if broken:
        raise WeightsError(
            f"{origin} holds values that are not finite numbers in {_listed(broken)}", "they are damaged"
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:NAMED_KEYS])
    return shown if len(names) <= NAMED_KEYS else f"{shown} and {len(names) - NAMED_KEYS} more"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
