"""The network as an ONNX file, for other runtimes.

The file contains the plain network, without strips or tiles, so its memory grows with the picture.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hasn_cli import files
from hasn_cli.errors import HasnError, MissingExtraError
from hasn_cli.network import HASN, MIN_SIDE

OPSET = 18
TOLERANCE = 1e-4  # of a sample in [0, 1]; rounding alone gives a hundredth of this
CHECK_SIZES = ((MIN_SIDE, MIN_SIDE), (37, 64), (50, 23))
INPUT, OUTPUT = "lr", "sr"


def export_onnx(network: HASN, path: Path, *, opset: int = OPSET, about: Mapping[str, str] | None = None) -> float:
    """Write `network` with its weights as ONNX, after `check_onnx` has passed. The file is complete or not written.

    The file's input `lr` is N×3×H×W, float32, RGB in [0, 1], any N, any H and W from 15. Its output `sr` is N×3×sH×sW,
    not clamped.

    Args:
        network: in evaluation mode, on the CPU.
        path: the target; an existing file is replaced.
        opset: version of the ONNX operators, 18 or later.
        about: more entries for the file's metadata, which always has the scale and the form of the input.

    Returns:
        The difference that `check_onnx` measured.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        HasnError: the exporter cannot write this opset, or the check failed; an existing file stays.
        OSError: the target cannot be written.
    """
    _runtime()  # fails before the work begins if it is missing
    model = _converted(network, opset)
    entries = {
        "architecture": "HASN",
        "scale": str(network.scale),
        "input": f"N×3×H×W, float32, RGB in [0, 1], H and W at least {MIN_SIDE}",
        **(about or {}),
    }
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)
    content = model.SerializeToString()
    worst = check_onnx(content, network)
    files.write(path, content)
    return worst


def _converted(network: HASN, opset: int) -> Any:
    example = torch.zeros(1, 3, MIN_SIDE + 9, MIN_SIDE + 20)  # different sides, so that they stay separate
    try:
        with _quietly():
            program = torch.onnx.export(
                network,
                (example,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=opset,
                dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
                dynamo=True,
                verbose=False,
            )
    except ModuleNotFoundError as error:
        raise MissingExtraError("writing ONNX", "onnx") from error
    assert program is not None
    model = program.model_proto
    if opset not in {entry.version for entry in model.opset_import if not entry.domain}:
        raise HasnError(f"the installed exporter cannot write opset {opset}", f"--opset {OPSET} always works")
    _forget_origin(model)
    return model


def check_onnx(model: Path | bytes, network: HASN, sizes: Sequence[tuple[int, int]] = CHECK_SIZES) -> float:
    """The largest difference between an ONNX model, run by onnxruntime, and the network, on noise.

    Args:
        model: the file, or its content.
        network: the network that it was made from.
        sizes: (height, width) of the noise pictures.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        HasnError: the difference is larger than rounding explains.
    """
    session = _runtime().InferenceSession(model, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for size in sizes:
        lr = torch.rand(1, 3, *size, generator=generator)
        with torch.inference_mode():
            expected = network(lr)
        (found,) = session.run([OUTPUT], {INPUT: lr.numpy()})
        worst = max(worst, (torch.from_numpy(found) - expected).abs().max().item())
    if not worst <= TOLERANCE:
        raise HasnError(
            f"the ONNX model differs from the network by {worst:.1g}", "please report it, with the version of torch"
        )
    return worst


def _runtime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtraError("running ONNX", "onnx") from error
    return onnxruntime


def _forget_origin(model: Any) -> None:
    """Remove the exporter's notes from every node: they contain stack traces with paths of this machine."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the messages of the exporter and its helper off stderr."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
