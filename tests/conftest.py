"""Offline, one thread a process, and a small world with an obvious artefact that several tests share."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # two test processes on two cores; also keeps sums in one order

import pytest
from browser import CHROMIUM, Browser


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork come first: after some others (an ONNX export, say) autograd refuses to work in a child."""
    items.sort(key=lambda item: not {"in_children", "processes"} & set(vars(item.module)))


@pytest.fixture(scope="session")
def planted(tmp_path_factory) -> Path:
    """Manifest of a world whose fakes carry a trace that anything trained must find."""
    from adapt.embedded.world import make_world

    return make_world(tmp_path_factory.mktemp("planted"), seed=7, scenes=(16, 8, 12), trace="planted", processes=1)


@pytest.fixture(scope="session")
def subtle(tmp_path_factory) -> Path:
    """Manifest of a world whose traces are as weak as those of the embedded default."""
    from adapt.embedded.world import make_world

    return make_world(tmp_path_factory.mktemp("subtle"), seed=7, scenes=(16, 8, 12), trace="subtle", processes=1)


@pytest.fixture
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("no chromium: apt-get install chromium")
    with Browser(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab
