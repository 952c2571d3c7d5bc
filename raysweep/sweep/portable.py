"""The final model as one graph, for ONNX runtimes and for PyTorch without this package.

In: images as they were decoded, (batch, 3, height, width) uint8 RGB of any one size. Out: the
probability of every class. Cropping, resizing, normalisation and softmax are in the graph, and
the class names are with it.

An image that has the size at which the data set stores its images is answered as by the model, and
so is any other: it is brought to that size with Pillow's own arithmetic (`data/decode.fitted`; bicubic,
antialiased, weights of 22 bits, rounded to whole levels after each direction), written as a product
with one matrix for each direction, as no runtime has an operator that is Pillow's. JPEG files of more
than twice that size differ a little, as raysweep has the JPEG decoder shrink them.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..data.preparation import Preparation
from ..files import write_bytes
from ..nets.heads import output_names
from ..quiet import quiet
from ..recipe import RecipeError
from .export import Classifier

ONNX, TORCH = "model.onnx", "model.pt2"
CLASS_NAMES = "class_names.json"
"""Name of the list of class names within `model.pt2`; that within `model.onnx` is `class_names`."""
ONE_FILE = 2**31 - 2**20
"""Bytes of tensors above which ONNX wants them in a file of their own."""
TRIED_SIZES = ((1, 1), (2.6, 1.7), (0.6, 1.3))
"""Height and width of the images that a graph is checked on, in stored sizes."""

ONE = 2.0**22
"""Pillow's 1 in its weights, which are whole numbers; the sums are exact in float64."""

Run = Callable[[np.ndarray], np.ndarray]
"""(batch, 3, height, width) uint8 → (batch, outputs) probabilities."""


class Portable(nn.Module):
    """Everything from a decoded image to the probabilities of the classes."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.network, self.preparation = model.network, model.preparation
        self.prepare = model.preparation.module()

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) uint8 → (batch, outputs) float32."""
        return self.network(self.prepare(fitted(images, self.preparation))).softmax(1)


def fitted(images: Tensor, preparation: Preparation) -> Tensor:
    """The largest centred part of the stored shape, resized to it: (batch, 3, *stored) float32 of whole levels."""
    height, width = preparation.stored
    rows, columns = _middles(images.shape[2]), _middles(images.shape[3])
    all_rows, all_columns = rows[-1] + 0.5, columns[-1] + 0.5
    taken_rows = torch.minimum(all_rows, all_columns * height / width)
    taken_columns = torch.minimum(all_columns, all_rows * width / height)
    narrowed = _levels(images.double() @ _resampling(columns, all_columns, taken_columns, width).T)
    return _levels(_resampling(rows, all_rows, taken_rows, height) @ narrowed).float()


def _middles(length: int) -> Tensor:
    """Where the pixels of a line are: 0.5, 1.5 and so on."""
    return torch.arange(length, dtype=torch.float64) + 0.5


def _levels(sums: Tensor) -> Tensor:
    """Sums by whole weights as whole levels; halves go up."""
    return ((sums + ONE / 2) / ONE).floor().clamp(0, 255)


def _resampling(middles: Tensor, length: Tensor, taken: Tensor, size: int) -> Tensor:
    """What each of `size` pixels takes of a line's pixels, of whose `length` the middle `taken` is resized.

    Returns:
        (size, length) float64 of whole numbers; rows add up to about `ONE`.
    """
    start = (length - taken) / 2
    first, last = start.float(), (start + taken).float()  # Pillow holds a box in single precision
    scale = (last - first).double() / size
    centres = first.double() + _middles(size) * scale
    weights = _cubic((middles - centres[:, None]) / scale.clamp(min=1))
    shares = weights / weights.sum(1, keepdim=True) * ONE
    return (shares.abs() + 0.5).floor() * shares.sign()


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5, as Pillow's BICUBIC."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


@torch.no_grad()
def exported(model: Classifier) -> ExportedProgram:
    """The graph; batch, height and width may change from call to call."""
    portable = Portable(model).eval()
    example = torch.zeros(2, 3, model.preparation.stored[0] + 2, model.preparation.stored[1] + 3, dtype=torch.uint8)
    sizes = {0: Dim("batch"), 2: Dim("height"), 3: Dim("width")}
    with quiet("torch.onnx", logging.ERROR):  # the exporters say much of themselves
        return torch.export.export(portable, (example,), dynamic_shapes={"images": sizes})


def outputs(model: Classifier, program: ExportedProgram) -> tuple[str, ...]:
    """A name for each output of the graph."""
    (node,) = (node for node in program.graph.nodes if node.op == "output")
    return output_names(model.class_names, node.args[0][0].meta["val"].shape[1])


def write_torch(file: Path, program: ExportedProgram, names: tuple[str, ...]) -> Run:
    """Write the graph for `torch.export.load`; returns what runs it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, file, extra_files={CLASS_NAMES: json.dumps(names, ensure_ascii=False)})
    module = program.module()
    return lambda images: module(torch.from_numpy(images)).detach().numpy()


def check_onnx() -> None:
    """Raise RecipeError if a package is missing that `write_onnx` needs."""
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise RecipeError(f"--onnx needs the package {package}: pip install onnx onnxscript onnxruntime")


def write_onnx(file: Path, program: ExportedProgram, names: tuple[str, ...]) -> Run | None:
    """Write the graph as ONNX, with a second output `class`, the name of the likeliest class.

    Returns:
        What runs the file; None where ONNX Runtime is not installed.
    """
    import onnx

    with quiet("torch.onnx", logging.ERROR):
        made = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False, output_names=["probability"])
    assert made is not None
    proto = made.model_proto
    _name_axes(proto.graph)
    _say_class(proto, names)
    if proto.ByteSize() > ONE_FILE:
        onnx.save(proto, str(file), save_as_external_data=True, location=f"{file.name}.data")
    else:
        write_bytes(file, proto.SerializeToString())
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probability"], {"images": images})[0]


def _name_axes(graph: Any) -> None:
    """Call the axes that may change batch, height and width, instead of by torch's symbols."""
    del graph.value_info[:]  # shapes in between, by the same symbols
    for value, names in ((graph.input[0], {0: "batch", 2: "height", 3: "width"}), (graph.output[0], {0: "batch"})):
        for axis, name in names.items():
            value.type.tensor_type.shape.dim[axis].dim_param = name


def _say_class(proto: Any, names: tuple[str, ...]) -> None:
    """Add the names of the classes to an ONNX model, and the output that says one."""
    from onnx import TensorProto, helper

    graph = proto.graph
    texts = [name.encode() for name in names]
    graph.initializer.append(helper.make_tensor("class_names", TensorProto.STRING, [len(texts)], texts))  # type: ignore[arg-type]
    graph.node.append(helper.make_node("ArgMax", ["probability"], ["likeliest"], axis=1, keepdims=0))
    graph.node.append(helper.make_node("Gather", ["class_names", "likeliest"], ["class"], axis=0))
    graph.output.append(helper.make_tensor_value_info("class", TensorProto.STRING, ["batch"]))
    helper.set_model_props(proto, {"class_names": json.dumps(names, ensure_ascii=False)})


def deviation(model: Classifier, run: Run) -> float:
    """The largest difference in a probability from the model, on noise of the stored size and of others."""
    height, width = model.preparation.stored
    random = np.random.RandomState(0)
    sizes = [(int(height * tall) or 1, int(width * wide) or 1) for tall, wide in TRIED_SIZES]
    return max(_difference(model, run, random.randint(0, 256, (3, *size, 3)).astype(np.uint8)) for size in sizes)


def _difference(model: Classifier, run: Run, images: np.ndarray) -> float:
    """The largest difference in a probability on images, (batch, height, width, 3) uint8."""
    decoded = np.stack([model.decode(Image.fromarray(image)) for image in images])
    expected = model.probabilities(torch.from_numpy(decoded)).numpy()
    return float(np.abs(run(np.ascontiguousarray(images.transpose(0, 3, 1, 2))) - expected).max())
