"""Load weights files as HASN networks, and save them: strict, and safe for files from strangers.

Two formats are read, recognised by their first bytes: safetensors, and PyTorch's own (`.pth`, `.pt`, `.ckpt`; see
`pytorch.py`). Before anything is built from a file, its size is checked, the length of the part that describes tensors,
and that no tensor claims more than the file contains.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hasn_cli import files
from hasn_cli.errors import WeightsError
from hasn_cli.network import HASN, SCALES
from hasn_cli.weights.header import open_weights
from hasn_cli.weights.pytorch import PICKLE_MAGIC, ZIP_MAGIC, read_pytorch_file

StateDict = dict[str, Tensor]

WRAPPERS = ("params_ema", "params", "state_dict")  # the averaged weights before the raw ones
PREFIXES = ("module.", "_orig_mod.")  # left by DistributedDataParallel and torch.compile
NAMED_KEYS = 4  # how many keys an error message names
MOST_DESCRIPTION = 1 << 20  # bytes that describe the tensors; 11 KB in HASN's own files


def load_state_dict_file(path: Path) -> StateDict:
    """Read the tensors of a weights file, under the names that HASN gives them.

    Args:
        path: a safetensors or PyTorch file. The tensors are in `params_ema`, else in `params`, else in `state_dict`,
            else at the top level. The prefixes `module.` and `_orig_mod.` are removed.

    Returns:
        Name → tensor on the CPU, as stored (any floating-point type).

    Raises:
        WeightsError: the file is missing, unreadable or damaged, would run code, or contains something else.
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
    """The first 8 bytes of a file, after checking its size."""
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
    """Build the network that a state dict was saved from. Its scale and width follow from the shapes.

    Args:
        state: name → tensor, complete.
        origin: the name of the weights in error messages.
        scale: the required scale, or None for any.

    Returns:
        The network in evaluation mode, float32, on the CPU.

    Raises:
        WeightsError: keys are missing or unknown (the message names them), shapes do not fit, a value is not finite, or
            the scale is a different one.
    """
    _refuse_claims(state, origin)
    found, width = _scale_of(state, origin), _width_of(state, origin)
    if scale is not None and found != scale:
        raise WeightsError(f"{origin} is for x{found}, not x{scale}", f"use -s {found}, or other weights")
    with torch.device("meta"):  # shapes only: a file that merely claims to be wide is refused before it takes memory
        network = HASN(found, width)
    _check_against(state, network.state_dict(), origin)
    _refuse_shared(state, origin)
    copies = {name: tensor.to("cpu", torch.float32, copy=True).contiguous() for name, tensor in state.items()}
    network.load_state_dict(copies, strict=True, assign=True)
    return network.eval()


def save_network(network: HASN, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a network as a safetensors file in float32, completely or not at all.

    Args:
        network: on any device.
        path: the file; an existing one is replaced.
        metadata: more entries for the file's header, which always contains architecture, scale and width.

    Raises:
        OSError: the file cannot be written. An existing file stays as it was.
    """
    from safetensors.torch import save

    tensors = {name: t.detach().to("cpu", torch.float32).contiguous() for name, t in network.state_dict().items()}
    about = {"architecture": "HASN", "scale": str(network.scale), "num_features": str(network.num_features)}
    files.write(path, save(tensors, {**(metadata or {}), **about}))


def _read_safetensors(path: Path, head: bytes) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    if int.from_bytes(head, "little") > MOST_DESCRIPTION:  # the file begins with the length of its header
        raise WeightsError(f"{path} is not a weights file, or is damaged", "download or copy it again")
    try:
        return load_file(path) if _is_unicode(path) else load(path.read_bytes())
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is not a weights file, or is damaged ({error})", "download or copy it again"
        ) from None


def _is_unicode(path: Path) -> bool:
    """Whether the path is valid Unicode. safetensors cannot open others."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _bare(content: object, path: Path) -> StateDict:
    """Remove the wrappers that training programs put around a state dict."""
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} contains a {type(content).__name__}, not a state dict", "save network.state_dict()")
    strays = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strays:
        raise WeightsError(
            f"{path} contains no plain state dict: {_listed(strays)} is not a tensor", "save network.state_dict()"
        )
    return {_without_prefix(str(name)): value for name, value in content.items()}


def _without_prefix(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def _refuse_claims(state: Mapping[str, Tensor], origin: str) -> None:
    """Refuse tensors that are empty or larger than their stored data: a small file could need gigabytes of memory."""
    hollow = [name for name, tensor in state.items() if not _is_whole(tensor)]
    if hollow:
        raise WeightsError(
            f"{origin} contains less than it claims in {_listed(hollow)}", "ask its author for another file"
        )


def _is_whole(tensor: Tensor) -> bool:
    if tensor.is_nested or tensor.is_meta or tensor.layout != torch.strided:
        return False
    return 0 < tensor.numel() * tensor.itemsize <= tensor.untyped_storage().nbytes()


def _refuse_shared(state: Mapping[str, Tensor], origin: str) -> None:
    """Refuse tensors that share their bytes. They could take more memory than the file, and HASN has none."""
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    if sum(tensor.numel() * tensor.itemsize for tensor in state.values()) > sum(stored.values()):
        raise WeightsError(
            f"{origin} contains less than it claims: tensors share their bytes", "ask its author for another file"
        )


def _scale_of(state: Mapping[str, Tensor], origin: str) -> int:
    shape = _shape_of(state, "upsampler.0.weight", origin)
    for scale in SCALES:
        if shape[0] == 3 * scale**2:
            return scale
    raise WeightsError(f"{origin} is for none of the scales {SCALES}: upsampler.0.weight gives {shape[0]} channels")


def _width_of(state: Mapping[str, Tensor], origin: str) -> int:
    return _shape_of(state, "conv_1.weight", origin)[0]


def _shape_of(state: Mapping[str, Tensor], name: str, origin: str) -> tuple[int, ...]:
    tensor = state.get(name)
    if tensor is None or tensor.ndim != 4:
        raise WeightsError(
            f"{origin} is not for HASN: {name} is missing", "hasn loads weights of the HASN network only"
        )
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
            f"{origin} contains values that are not finite numbers in {_listed(broken)}", "the file is damaged"
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:NAMED_KEYS])
    return shown if len(names) <= NAMED_KEYS else f"{shown} and {len(names) - NAMED_KEYS} more"
