"""A detector as one ONNX file, adapter merged and head included, checked against torch (extra `export`)."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from adapt.detector.detector import Detector
from adapt.errors import Refusal
from adapt.files import atomic
from adapt.models.adapters.lora import merge_adapter

TOLERANCE = 1e-3  # of a logit; fp32 sums in another order differ by about 1e-5
LARGEST = 2**31 - 2**20  # bytes of a protobuf message, less what describes the graph


def export_onnx(detector: Detector, file: Path, pictures: Sequence[Tensor] = ()) -> float:
    """Write a detector in fp32; returns the largest difference of a logit between ONNX Runtime and torch.

    The file maps `pixels` (n, 3, size, size) uint8, any n, to `logit` (n,) float32: normalisation is inside, geometry
    and the order of channels (`Preprocess`) are not. Compared are batches of 1 and of 5 of random pixels and of
    `pictures` (3, size, size). The torch side is the detector as it was; its adapter is merged by this call. A
    difference above `TOLERANCE` is refused, and no file is left.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (what torch.onnx.export writes with)
    except ImportError as error:
        raise Refusal(f"ONNX needs {error.name}: run `pip install 'adapt-aigi[export]'`") from error
    detector.refuse_statistics("an ONNX file")
    detector.refuse_complete("an ONNX file of a detector")
    if detector.backbone.dtype != torch.float32:
        raise Refusal("ONNX Runtime has no bf16 on CPUs: load the detector with precision='fp32'")
    if (weight := sum(value.nbytes for value in detector.state_dict().values())) >= LARGEST:
        raise Refusal(f"one ONNX file holds less than 2 GB, this detector has {weight / 1e9:.1f}: use torch")
    size, generator = detector.backbone.preprocess.size, torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (6, 3, size, size), generator=generator, dtype=torch.uint8)
    batches = [noise[:1], noise[1:], *(torch.stack(list(pictures[i : i + 5])) for i in range(0, len(pictures), 5))]
    detector.eval().requires_grad_(False)
    expected = [detector(batch) for batch in batches]
    if hasattr(detector.backbone.tower, "peft_config"):
        merge_adapter(detector.backbone)
    with atomic(file) as temporary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.11's exporter warns of its own calls
            torch.onnx.export(
                detector,
                (batches[1],),
                temporary,
                input_names=["pixels"],
                output_names=["logit"],
                dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        found = [torch.from_numpy(session.run(None, {"pixels": batch.numpy()})[0]) for batch in batches]
        worst = max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))
        if not worst <= TOLERANCE:
            raise Refusal(f"ONNX Runtime's logits differ from torch's by {worst:.2g}, over {TOLERANCE:g}: no {file}")
    return worst
