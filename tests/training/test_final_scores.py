"""What final scores refuse; that they are kept in parts is seen in tests/test_signals.py."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from adapt.data.manifest import Manifest
from adapt.detector.detector import Detector
from adapt.errors import Refusal
from adapt.models.heads.linear import LinearHead
from adapt.models.towers.backbones import load_backbone
from adapt.training.final_scores import final_scores


def test_logits_that_are_not_finite_are_refused_and_not_kept(planted, tmp_path) -> None:
    rows, backbone = Manifest.read(planted), load_backbone("tiny")
    detector = Detector(backbone, LinearHead(backbone.dim))
    scoring = {"workers": 0, "share": (0, 1), "gather": list}
    run = SimpleNamespace(folder=tmp_path, identity={}, scoring=lambda _: scoring)
    with torch.no_grad():
        next(detector.head.parameters()).fill_(torch.inf)
    with pytest.raises(Refusal, match=r"3 logits are not finite, such as that of '.*': use --precision fp32, or a"):
        final_scores(run, detector, rows, np.arange(3), ("none",), 0)
    with torch.no_grad():
        next(detector.head.parameters()).fill_(0)
    scores = final_scores(run, detector, rows, np.arange(3), ("none",), 0)
    assert scores is not None and np.isfinite(scores["logit"]).all()
