"""Networks of ONNX, run by ONNX Runtime on the CPU (extra `export`).

A file may be a stranger's, so it is read as data first. Refused are: weights in other files (`external_data` names any
file of this machine), operators outside of ONNX's own sets (others come from libraries that would be loaded), loops
(which need not end) and operators that draw random numbers (an image would not be scored twice alike).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapt.errors import Refusal
from adapt.text import one_line

DOMAINS = {"", "ai.onnx", "ai.onnx.ml"}
REFUSED = {
    **dict.fromkeys(("Loop", "Scan", "SequenceMap"), "a loop, which need not end"),
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"),
        "an operator that draws random numbers",
    ),
}
LARGEST = 2**31 - 1  # bytes of a protobuf message
DEEPEST = 16  # graphs in one another
FLOAT = 1  # TensorProto.FLOAT


class Onnx(nn.Module):
    """Pixels (n, 3, h, w) float32 -> the chosen output, float32."""

    def __init__(self, file: Path, size: int, output_name: str | None) -> None:
        super().__init__()
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise Refusal(f"ONNX needs {error.name}: run `pip install 'adapt-aigi[export]'`") from error
        if file.stat().st_size > LARGEST:
            raise Refusal(f"{file} has more than 2 GB, the most that one file of ONNX can have")
        data = file.read_bytes()
        try:
            model = onnx.load_model_from_string(data)
        except Exception as error:  # protobuf's own
            raise Refusal(f"{file} is no ONNX file, or damaged: {one_line(str(error), 200)}") from error
        _check(file, model)
        self.file = file
        self.input, self.one_by_one = _input(file, model, size)
        names = [output.name for output in model.graph.output]
        if output_name is None and len(names) != 1:
            raise Refusal(f"{file} has the outputs {', '.join(names) or '(none)'}: choose one with --output_name")
        if output_name is not None and output_name not in names:
            raise Refusal(f"--output_name {output_name}: {file} has {', '.join(names)}")
        self.output = names[0] if output_name is None else output_name
        options = onnxruntime.SessionOptions()
        options.use_deterministic_compute = True
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = _run(
            file, onnxruntime.InferenceSession, data, sess_options=options, providers=["CPUExecutionProvider"]
        )

    def forward(self, pixels: Tensor) -> Tensor:
        parts = pixels.float().cpu().split(1 if self.one_by_one else len(pixels))
        found = [_run(self.file, self._session.run, [self.output], {self.input: part.numpy()})[0] for part in parts]
        return torch.cat([torch.from_numpy(each) for each in found]).float().to(pixels.device)


def _run(file: Path, call: Any, *given: Any, **named: Any) -> Any:
    try:
        return call(*given, **named)
    except Exception as error:  # ONNX Runtime's errors have no class in common but this one
        words = one_line(str(error).partition("\n")[0], 300)
        raise Refusal(f"{file} cannot be run by ONNX Runtime: {words}") from error


def _check(file: Path, model: Any) -> None:
    """Refuse what a file may not ask for; see above."""
    own = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(file, model):
        if why := REFUSED.get(node.op_type):
            raise Refusal(f"{file} has the operator {node.op_type}, {why}: export the network without it")
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
            raise Refusal(
                f"{file} has the operator {one_line(f'{node.domain}.{node.op_type}', 100)}, which is none of ONNX's "
                "own: export the network without custom or fused operators"
            )


def _nodes(file: Path, model: Any) -> Iterator[Any]:
    """All nodes, those of functions and of graphs inside nodes included; refuses weights outside of the file."""
    waiting = [(0, model.graph), *((0, function) for function in model.functions)]
    while waiting:
        depth, graph = waiting.pop()
        if depth > DEEPEST:
            raise Refusal(f"{file} has graphs in one another, more than {DEEPEST}")
        tensors = list(getattr(graph, "initializer", ()))
        tensors += [part for one in getattr(graph, "sparse_initializer", ()) for part in (one.values, one.indices)]
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                sparse = [attribute.sparse_tensor, *attribute.sparse_tensors]
                tensors += [attribute.t, *attribute.tensors, *(p for one in sparse for p in (one.values, one.indices))]
                waiting += [(depth + 1, inner) for inner in (attribute.g, *attribute.graphs) if inner.node]
        if outside := [tensor.name for tensor in tensors if tensor.data_location or tensor.external_data]:
            raise Refusal(
                f"{file} keeps weights in other files ({one_line(outside[0], 80)}): save it as one file, "
                "torch.onnx.export(..., external_data=False)"
            )


def _input(file: Path, model: Any, size: int) -> tuple[str, bool]:
    """The name of the images' input, and whether it takes one image at a time."""
    weights = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in weights]
    if len(inputs) != 1:
        raise Refusal(f"{file} has {len(inputs)} inputs, not one: {', '.join(one.name for one in inputs)}")
    kind = inputs[0].type.tensor_type
    sides = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    said = f"{inputs[0].name} {['any' if side is None else side for side in sides]}"
    if kind.elem_type != FLOAT or len(sides) != 4 or sides[1] not in (3, None):
        raise Refusal(f"{file}: its input {said} is not float32 (n, 3, h, w): export it with such an input")
    if sides[0] not in (1, None):
        raise Refusal(f"{file}: its input {said} takes {sides[0]} images at once: export it with a free batch, or 1")
    if any(side not in (size, None) for side in sides[2:]):
        raise Refusal(f"--size {size}: {file} takes images of {sides[3]} x {sides[2]} px")
    return inputs[0].name, sides[0] == 1
