"""A run that is killed and started again ends as if nothing had happened; several processes compute what one does."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import lora
import numpy as np
import open_clip  # noqa: F401 (as adapt.training.report: loaded once here, inherited by every child)
import peft  # noqa: F401
import psutil
import pytest
import torch
from processes import in_children
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import adapt.training.report  # noqa: F401
from adapt.collect import builder
from adapt.collect.pack import pack
from adapt.data import archives
from adapt.data.manifest import Manifest
from adapt.errors import Refusal
from adapt.evaluation.scores import Scores
from adapt.files import sha256
from adapt.models.heads import losses
from adapt.models.towers.backbones import TINY
from adapt.training import checkpoint
from adapt.training import tokens as prefix
from adapt.training.run import Run, warmup_cosine

STEPS = 8  # 16 groups, 4 a step, 2 epochs


@pytest.fixture
def config(planted, tmp_path) -> lora.Config:
    return lora.Config(
        manifest=(str(planted),),
        output_dir=tmp_path / "run",
        train_views=("none", "qf65"),
        test_views=("none",),
        epochs=2,
        groups=4,
        learning_rate=2e-3,
        head_learning_rate=2e-3,
        rank=2,
        dropout=0.1,
        precision="fp32",
        resamples=20,
        checkpointing_steps=3,
        num_workers=0,
    )


def results(folder: Path) -> dict[str, str]:
    """Everything that must not depend on interruptions."""
    names = (
        "log.jsonl",
        "scores.parquet",
        "metrics.csv",
        "detector/head.safetensors",
        "detector/adapter/adapter_model.safetensors",
    )
    return {name: sha256(folder / name) for name in names}


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of TensorBoard, as a reader of the event files sees them; of the speed the steps alone."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    return {t: [(e.step, 0 if t == "train/images_per_s" else e.value) for e in events.Scalars(t)] for t in tags}


def killed(config: lora.Config, where: str, at: int, world: int) -> list[int]:
    """Run until a SIGKILL that strikes rank 0 at step `at`: after its update, in the middle of writing its
    checkpoint, between publishing it and removing old ones, or in the validation behind it."""

    def strike(*_, **__) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def body() -> None:
        if os.environ.get("RANK", "0") == "0":
            if where == "update":
                log = Run._log_step

                def logged(run, *values):
                    log(run, *values)
                    return strike() if run.step_number == at else None

                Run._log_step = logged
            elif where == "validation":
                prefix.score = strike
            else:
                original = checkpoint.save_file if where == "writing" else checkpoint._newest_first

                def interrupted(*values):
                    if any(f"checkpoint-{at}" in str(p) for p in config.output_dir.glob("*checkpoint-*")):
                        strike()
                    return original(*values)

                setattr(checkpoint, "save_file" if where == "writing" else "_newest_first", interrupted)
        lora.main(config)

    return in_children(body, world)


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])
def test_killed_anywhere_and_resumed_is_bit_identical(config, tmp_path, world, workers) -> None:
    config = dataclasses.replace(config, num_workers=workers)
    whole = dataclasses.replace(config, output_dir=tmp_path / "whole")
    assert in_children(lambda: lora.main(whole), world) == [0] * world
    for where, at in (
        ("update", 1),
        ("update", 2),
        ("writing", 3),
        ("update", 3),
        ("update", 4),
        ("validation", 4),
        ("rotation", 6),
        ("update", 7),
    ):
        statuses = killed(config, where, at, world)
        assert statuses[0] == -signal.SIGKILL, f"not killed at {where} {at}: {statuses}"
    assert in_children(lambda: lora.main(config), world) == [0] * world
    assert results(config.output_dir) == results(whole.output_dir)
    lines = [json.loads(line) for line in (config.output_dir / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert points(config.output_dir) == points(whole.output_dir)
    assert [step for step, _ in points(config.output_dir)["train/loss"]] == list(range(1, STEPS + 1))
    assert not list(config.output_dir.glob(".*.tmp"))


def test_the_commit_of_the_weights_is_on_record_and_another_one_of_the_same_weights_continues(
    config, tmp_path, monkeypatch
) -> None:
    """A repository of the hub whose card was edited between the two sittings."""
    repository, commits = tmp_path / "hub" / "models--acme--tiny", ("a" * 40, "b" * 40)

    def publish(commit: str) -> None:
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        shutil.copytree(TINY, repository / "snapshots" / commit)

    def stop(run, *_) -> None:
        if run.step_number == 4:
            run.close()
            raise InterruptedError

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    config = dataclasses.replace(config, backbone="open_clip:hf-hub:acme/tiny")
    publish(commits[0])
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(Run, "_log_step", stop)
        lora.main(config)
    publish(commits[1])
    lora.main(config)
    record = json.loads((config.output_dir / "provenance.json").read_text())
    assert record["identity"]["base"]["commit"] == commits[1]
    detector = json.loads((config.output_dir / "detector" / "detector.json").read_text())
    assert detector["backbone"]["commit"] == commits[1]


def test_training_on_many_tar_files_is_resumed_bit_by_bit(config, planted, tmp_path, monkeypatch) -> None:
    """Every group in a tar file of its own, three of which are read at a time."""
    monkeypatch.setattr(builder, "SHARD_BYTES", 1)
    packed = pack(Manifest.read(planted), tmp_path / "packed.csv")
    assert len(list((tmp_path / "packed.shards").glob("*.tar"))) == 36
    runs = {name: dataclasses.replace(config, manifest=(str(packed),), output_dir=tmp_path / name) for name in "abc"}
    assert in_children(lambda: lora.main(runs["c"])) == [0]
    monkeypatch.setattr(archives, "WINDOW", 3)
    assert in_children(lambda: lora.main(runs["a"])) == [0]
    again = dataclasses.replace(runs["b"], num_workers=2)
    assert killed(again, "update", 7, 1) == [-signal.SIGKILL]  # in the second epoch, a step behind a checkpoint
    assert in_children(lambda: lora.main(again)) == [0]
    assert results(again.output_dir) == results(runs["a"].output_dir)
    by_all, by_few = ((runs[name].output_dir / "log.jsonl").read_text() for name in "ca")
    assert by_all != by_few  # the tar files did matter


def test_two_processes_compute_what_one_does(config, tmp_path) -> None:
    config = dataclasses.replace(config, dropout=0.0, gradient_accumulation_steps=2)
    other = dataclasses.replace(config, output_dir=tmp_path / "two")
    single = dataclasses.replace(config, output_dir=tmp_path / "plain", gradient_accumulation_steps=1)
    assert in_children(lambda: lora.main(config)) == [0]
    assert in_children(lambda: lora.main(single)) == [0]
    assert in_children(lambda: lora.main(other), world=2) == [0, 0]
    logs, logits = [], []
    for folder in (config.output_dir, single.output_dir, other.output_dir):
        logs.append([json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()])
        logits.append(Scores.read(folder / "scores.parquet")["logit"])
    for log, logit in zip(logs[1:], logits[1:], strict=True):
        np.testing.assert_allclose(log, logs[0], rtol=1e-4)
        # AdamW's first steps divide gradients by their own size, so that the last bit of a tiny one shows
        np.testing.assert_allclose(logit, logits[0], atol=0.02 * np.std(logits[0]) + 3e-3)


def test_sigterm_saves_and_exits_and_the_rest_follows(config, tmp_path) -> None:
    config = dataclasses.replace(config, num_workers=2)
    whole = dataclasses.replace(config, output_dir=tmp_path / "whole")
    assert in_children(lambda: lora.main(whole)) == [0]

    def terminated() -> None:
        step = Run.step

        def then_signal(run, *values):
            if run.step_number == 1:
                workers = psutil.Process().children()
                assert len(workers) == 2
                for worker in workers:  # as a scheduler does, which signals every process of a job
                    worker.terminate()
                os.kill(os.getpid(), signal.SIGTERM)
            step(run, *values)

        Run.step = then_signal
        lora.main(config)

    assert in_children(terminated) == [128 + signal.SIGTERM]
    assert [path.name for path in config.output_dir.glob("checkpoint-*")] == ["checkpoint-2"]
    assert in_children(lambda: lora.main(config)) == [0]
    assert results(config.output_dir) == results(whole.output_dir)


@pytest.fixture
def stopped(config) -> lora.Config:
    assert killed(config, "update", 4, 1) == [-signal.SIGKILL]
    return config


def message(config: lora.Config, world: int = 1) -> str:
    """What the run refuses with."""
    path = config.output_dir.with_name("refusal.txt")

    def body() -> None:
        try:
            lora.main(config)
        except Refusal as refusal:
            path.write_text(str(refusal))
            os._exit(2)

    assert 2 in in_children(body, world)
    return path.read_text()


def test_changed_settings_and_process_count_are_refused_with_the_difference(stopped) -> None:
    said = message(dataclasses.replace(stopped, learning_rate=1e-4, groups=8))
    assert "groups: 4 -> 8; learning_rate: 0.002 -> 0.0001" in said and "--output_dir" in said
    said = message(stopped, world=2)
    assert "processes: 1 -> 2" in said and "--other_processes continues it, not bit-identically" in said


def test_a_run_continues_with_another_number_of_processes_where_the_flag_allows_it(config, tmp_path, capfd) -> None:
    config = dataclasses.replace(config, dropout=0.0)
    whole = dataclasses.replace(config, output_dir=tmp_path / "whole")
    assert in_children(lambda: lora.main(whole)) == [0]
    assert killed(config, "update", 5, 1) == [-signal.SIGKILL]
    allowed = dataclasses.replace(config, other_processes=True)
    assert killed(allowed, "validation", 8, 2)[0] == -signal.SIGKILL
    assert "1 process(es) before, 2 now: not bit-identical" in capfd.readouterr().out
    assert in_children(lambda: lora.main(dataclasses.replace(allowed, timeout_hours=1)), 2) == [0, 0]
    assert "not bit-identical" not in capfd.readouterr().out  # two processes, as before
    logs = [
        [json.loads(line) for line in (one.output_dir / "log.jsonl").read_text().splitlines()]
        for one in (config, whole)
    ]
    assert [line["step"] for line in logs[0]] == list(range(1, STEPS + 1))
    losses = [[line["loss"] for line in log] for log in logs]
    assert losses[0][:3] == losses[1][:3] and losses[0] != losses[1]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_flag_that_is_newer_than_the_run_had_its_default(stopped) -> None:
    """So a run of an earlier version continues."""
    state = stopped.output_dir / "checkpoint-3" / checkpoint.STATE
    record = json.loads(state.read_text())
    assert record["identity"].pop("tf32") is False and record["identity"].pop("fast_kernels") is False
    state.write_text(json.dumps(record))
    assert "fast_kernels: False -> True" in message(dataclasses.replace(stopped, fast_kernels=True))
    assert in_children(lambda: lora.main(stopped)) == [0]


def test_damaged_checkpoints_are_left_out(stopped, capfd) -> None:
    state = stopped.output_dir / "checkpoint-3" / "model.safetensors"
    data = bytearray(state.read_bytes())
    data[-5] ^= 1  # safetensors itself would load this
    state.write_bytes(bytes(data))
    assert checkpoint.load_checkpoint(stopped.output_dir) is None
    assert "checkpoint-3 is damaged" in capfd.readouterr().out


@pytest.mark.parametrize("seen", ["nothing", "another"])
def test_processes_that_read_different_checkpoints_are_refused(config, seen, tmp_path) -> None:
    """As those of two machines whose results lie on disks of their own."""
    assert killed(config, "update", 4, 2)[0] == -signal.SIGKILL
    read = checkpoint._read
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(config.output_dir, elsewhere)
    if seen == "another":
        path = elsewhere / "checkpoint-3" / checkpoint.STATE
        path.write_text(path.read_text().replace('"bad": 0', '"bad": 1'))
    else:
        shutil.rmtree(elsewhere / "checkpoint-3")

    def body() -> None:
        if os.environ["RANK"] == "1":
            checkpoint._read = lambda path: read(elsewhere / path.name)
        try:
            lora.main(config)
        except Refusal as refusal:
            (tmp_path / os.environ["RANK"]).write_text(str(refusal))
            os._exit(2)

    assert in_children(body, 2) == [2, 2]
    for rank in "01":
        said = (tmp_path / rank).read_text()
        assert said.startswith(f"process 1 does not read the checkpoint-3 of {config.output_dir}") and "share" in said


def test_a_folder_serves_one_run_at_a_time(tmp_path) -> None:
    def second() -> None:
        try:
            checkpoint.hold(tmp_path)
        except Refusal as refusal:
            assert "in use by another run" in str(refusal)
            os._exit(9)

    lock = checkpoint.hold(tmp_path)
    assert in_children(second) == [9]
    with pytest.raises(Refusal, match="in use by another run"):
        checkpoint.hold(tmp_path)
    assert in_children(second) == [9]
    lock.close()
    assert in_children(second) == [0]


def test_checkpoints_hold_no_base_weights_and_old_ones_go(config) -> None:
    assert killed(config, "update", 7, 1) == [-signal.SIGKILL]
    assert sorted(path.name for path in config.output_dir.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    tensors, state = checkpoint.load_checkpoint(config.output_dir)
    assert state["step"] == 6 and set(tensors) == {"model", "optimizer", "selected"}
    assert all("lora_" in name or name.startswith("head.") for name in tensors["model"])
    assert {name.rpartition("|")[2] for name in tensors["optimizer"]} == {"step", "exp_avg", "exp_avg_sq"}


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch) -> None:
    checkpoint.save_checkpoint(tmp_path, 1, {"model": {"w": torch.ones(3)}}, {})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(Refusal, match=r"No space left.*earlier checkpoints are intact"):
        checkpoint.save_checkpoint(tmp_path, 2, {"model": {"w": torch.zeros(3)}}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert checkpoint.load_checkpoint(tmp_path)[1]["step"] == 1


def test_steps_that_are_not_finite_are_skipped_and_then_end_the_run(config, capfd) -> None:
    def poisoned(steps: set[int]) -> None:
        step = Run.step
        Run.step = lambda run, loss, norm: step(run, loss * (float("nan") if run.step_number in steps else 1), norm)
        lora.main(config)

    assert in_children(lambda: poisoned({1, 4, 5})) == [0]
    assert capfd.readouterr().out.count("update skipped") == 3
    losses = [json.loads(line)["loss"] for line in (config.output_dir / "log.jsonl").read_text().splitlines()]
    assert [i for i, loss in enumerate(losses) if loss != loss] == [1, 4, 5]
    shutil.rmtree(config.output_dir)
    assert in_children(lambda: poisoned({4, 5, 6})) == [3]
    tensors = checkpoint.load_checkpoint(config.output_dir)[0]
    assert all(value.isfinite().all() for part in tensors.values() for value in part.values())


def test_schedule() -> None:
    values = [warmup_cosine(total=100, share=0.1)(step) for step in range(101)]
    assert values[0] == pytest.approx(0.1) and values[9] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(values[9:]))
    assert values[55] == pytest.approx(0.5) and values[100] == pytest.approx(0, abs=1e-12)
    assert warmup_cosine(total=1, share=0.0)(0) == 1.0


def test_processes_meet_once_a_step_however_many_micro_batches(config, tmp_path) -> None:

    def body(accumulation: int, counted: Path) -> None:
        sums, add_up = [], torch.distributed.all_reduce

        def counting(tensor, *values, **known):
            if tensor.numel() > 100:  # gradients, not a loss
                sums.append(tensor.numel())
            return add_up(tensor, *values, **known)

        torch.distributed.all_reduce = counting
        folder = tmp_path / f"run{accumulation}"
        lora.main(dataclasses.replace(config, output_dir=folder, gradient_accumulation_steps=accumulation))
        counted.with_suffix(f".{os.environ['RANK']}").write_text(str(len(sums)))

    for accumulation in (1, 2):
        path = tmp_path / f"sums{accumulation}"
        assert in_children(lambda a=accumulation, p=path: body(a, p), world=2) == [0, 0]
    found = [int((tmp_path / f"sums{a}.{rank}").read_text()) for a in (1, 2) for rank in (0, 1)]
    assert found == [STEPS] * 4


def test_few_images_per_gpu_are_said_with_the_remedy(config, tmp_path) -> None:
    said: list[str] = []
    for device, images in (("cpu", 5), ("cuda", 15), ("cuda", 16)):
        Run._say_images(SimpleNamespace(device=torch.device(device), say=said.append), images)
    assert said == [
        "15 images per GPU in a pass: below 16 it mostly waits; give larger --groups, which all processes share",
        "16 images per GPU in a pass",
    ]
    config = dataclasses.replace(config, gradient_accumulation_steps=2)

    def body() -> None:
        Run._say_images = lambda _, images: (tmp_path / "said").open("a").write(f"{images} ")
        Run.select = lambda *_, **__: os._exit(0)
        lora.main(config)

    assert in_children(body) == [0]
    assert (tmp_path / "said").read_text() == "12 "  # once, of 2 groups: a photograph and 5 fakes each


def test_chains_with_a_ramp_train_alike_on_any_workers_and_after_a_kill(config, tmp_path) -> None:
    """Under `chains`, with twins and a ramp: which steps, how strong, and what they do."""
    config = dataclasses.replace(config, train_views=("chains",), consistency=0.5, ramp=2, own_quality=True)
    whole = dataclasses.replace(config, output_dir=tmp_path / "whole", num_workers=2)
    assert in_children(lambda: lora.main(whole)) == [0]
    assert killed(config, "update", 5, 1)[0] == -signal.SIGKILL
    assert in_children(lambda: lora.main(config)) == [0]
    assert results(config.output_dir) == results(whole.output_dir)
    assert "chain4:0" in (whole.output_dir / "config.yaml").read_text()
    without = dataclasses.replace(config, output_dir=tmp_path / "without", ramp=0)
    assert in_children(lambda: lora.main(without)) == [0]
    assert results(without.output_dir)["log.jsonl"] != results(whole.output_dir)["log.jsonl"]


def test_consistency_joins_the_two_views_of_each_image(config, tmp_path) -> None:
    """Its term is the mean over images: where each pair costs 3, a weight of 2 adds 6 to the first step's loss."""
    losses_of = []
    for weight in (0.0, 2.0):
        one = dataclasses.replace(
            config, output_dir=tmp_path / f"{weight:g}", consistency=weight, epochs=1, dropout=0.0
        )

        def body(one=one) -> None:
            losses.consistency = lambda a, b: 3.0 * len(a) + 0 * (a + b).sum()
            lora.main(one)

        assert in_children(body) == [0]
        losses_of.append(json.loads((one.output_dir / "log.jsonl").read_text().splitlines()[0])["loss"])
    assert losses_of[1] - losses_of[0] == pytest.approx(
        6, rel=1e-5
    )  # the head starts at zero: views are no matter yet
