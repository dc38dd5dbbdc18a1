"""A weights file on disk ↔ a HASN network: strict, and safe for files from strangers.

Two containers are read, told apart by their first bytes: safetensors, and PyTorch's own (`.pth`, `.pt`, `.ckpt`; see
`pytorch.py`). Both are checked before anything is built from them: how large the file is, how much of it describes
tensors, and that no tensor claims more than the file holds.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hasn_cli.errors import WeightsError
from hasn_cli.network import HASN, SCALES
from hasn_cli.weights.header import open_weights
from hasn_cli.weights.pytorch import PICKLE_MAGIC, ZIP_MAGIC, read_pytorch_file

StateDict = dict[str, Tensor]

WRAPPERS = ("params_ema", "params", "state_dict")  # the averaged weights before the raw ones
PREFIXES = ("module.", "_orig_mod.")  # left by DistributedDataParallel and torch.compile
NAMED_KEYS = 4  # how many keys an error spells out
MOST_DESCRIPTION = 1 << 20  # bytes that describe the tensors; HASN's take 11 KB


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
    head = _head(path)
    if not head:
        raise WeightsError(f"{path} is empty", "download or copy it again")
    try:
        if head.startswith((ZIP_MAGIC, PICKLE_MAGIC)):
            return _bare(read_pytorch_file(path, MOST_DESCRIPTION), path)
        return _bare(_read_safetensors(path, head), path)
    except OSError as error:
        raise _unreadable(path, error) from None


def _head(path: Path) -> bytes:
    """The first 8 bytes of a file of a size that weights can have."""
    try:
        with open_weights(path) as file:
            return file.read(8)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> WeightsError:
    return WeightsError(f"cannot read weights {path}: {error.strerror or error}", "check the path given to -w")


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
    _refuse_shared(state, origin)
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


def _read_safetensors(path: Path, head: bytes) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    if int.from_bytes(head, "little") > MOST_DESCRIPTION:  # the length of the header, which comes first
        raise WeightsError(f"{path} is no weights file, or a damaged one", "download or copy it again")
    try:
        return load_file(path) if _is_unicode(path) else load(path.read_bytes())
    except SafetensorError as error:
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


def _refuse_shared(state: Mapping[str, Tensor], origin: str) -> None:
    """Tensors that share their bytes would take more memory than the file, and HASN has none that do."""
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    if sum(tensor.numel() * tensor.itemsize for tensor in state.values()) > sum(stored.values()):
        raise WeightsError(f"{origin} does not hold what it claims: tensors share their bytes", "ask for another file")


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
