"""The network as an ONNX file, for other runtimes.

What is written is the plain network: whole pictures, no strips and no tiles, so its memory grows with the picture.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hasn_cli.errors import HasnError, MissingExtraError
from hasn_cli.network import HASN, MIN_SIDE
from hasn_cli.weights.checkpoint import write_atomically

OPSET = 18
TOLERANCE = 1e-4  # of a sample in [0, 1]; rounding alone stays two orders below
CHECK_SIZES = ((MIN_SIDE, MIN_SIDE), (37, 64), (50, 23))
INPUT, OUTPUT = "lr", "sr"


def export_onnx(network: HASN, path: Path, *, opset: int = OPSET, about: Mapping[str, str] | None = None) -> float:
    """Write `network` as ONNX, weights inside, once `check_onnx` has passed it; whole or not at all.

    The file's input `lr` is N×3×H×W, float32, RGB in [0, 1], any N, any H and W from 15; its output `sr` is N×3×sH×sW,
    unclamped.

    Args:
        network: in evaluation mode, on the CPU.
        path: the target; an existing file is replaced.
        opset: version of the ONNX operators, 18 or later.
        about: entries for the file's metadata, beside scale and what the input must be.

    Returns:
        What `check_onnx` measured.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        HasnError: there is no writing such an opset, or the check has failed; what was at `path` stays.
        OSError: the target cannot be written.
    """
    _runtime()  # if it is missing, that is told before the work
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
    write_atomically(path, content)
    return worst


def _converted(network: HASN, opset: int) -> Any:
    example = torch.zeros(1, 3, MIN_SIDE + 9, MIN_SIDE + 20)  # unequal sides, so that neither is taken for the other
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
    """The largest difference between an ONNX model, run by onnxruntime, and the network, over noise.

    Args:
        model: the file, or what would be its content.
        network: what it was made from.
        sizes: (height, width) of each noise.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        HasnError: the difference is more than rounding.
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
            f"the ONNX model differs from the network by {worst:.1g}", "please report it, with torch's version"
        )
    return worst


def _runtime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtraError("running ONNX", "onnx") from error
    return onnxruntime


def _forget_origin(model: Any) -> None:
    """Take out the exporter's notes on every node, which hold stack traces with this machine's paths."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what the exporter and its helper say of themselves off stderr."""
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
