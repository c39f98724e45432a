"""The training loop on small runs: learning, resuming, schedules, configurations."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from small_runs import assert_same_state, lines, run, small, weights, without_times

from deformvit import UserError, load_model, recipes
from deformvit.engine import loop
from deformvit.engine.checkpoint import CheckpointError, Checkpoints
from deformvit.engine.loader import steps_per_epoch
from deformvit.engine.optim import build_optimizer, build_schedule
from deformvit.engine.record import Origin, write_record
from deformvit.metrics.classification import Confusion
from deformvit.tasks import classification
from deformvit.tasks.classification import Classification


def test_it_learns_and_leaves_a_usable_model(images, tmp_path):
    config = small(images, tmp_path / "run", epochs=12)
    metrics = run(config)
    assert metrics["top1"] > 85
    assert metrics["train_loss"] < 0.6
    model, info = load_model(str(tmp_path / "run" / "best.safetensors"))
    assert info.classes == ["left", "top"]
    assert info.metrics["top1"] == max(row["top1"] for row in lines(tmp_path / "run"))
    task = Classification(config)
    loader = torch.utils.data.DataLoader(task.val_set, 6)
    again, found = classification.evaluate(model, loader, task.classes, torch.device("cpu"), progress=False)
    assert again["top1"] == pytest.approx(info.metrics["top1"])
    assert torch.equal(Confusion.read(tmp_path / "run" / "confusion.json").entries, found.entries)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["epochs"] == 12
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


@pytest.mark.parametrize(
    ("workers", "amp", "more"),
    [
        (0, "none", {}), (2, "none", {}), (0, "bf16", {}), (0, "fp16", {}),
        (0, "none", {"ema": 0.9, "accumulate": 2, "grad_checkpointing": True, "channels_last": True}),
    ],
)  # fmt: skip
def test_run_resumed_inside_an_epoch_equals_the_uninterrupted_one(images, tmp_path, workers, amp, more):
    options = {"auto_augment": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.25}
    whole, parts = small(images, tmp_path / "whole", **options), small(images, tmp_path / "parts", **options)
    for config in (whole, parts):
        config.data.workers = workers
        config.run = dataclasses.replace(config.run, amp=amp, **more)
    run(whole)

    class Stop(Exception):
        pass

    class Interrupted(Classification):
        taken = 0

        def losses(self, model, batch, device):
            self.taken += 1
            if self.taken > 9 * parts.run.accumulate:  # in the second epoch of six steps
                raise Stop
            return super().losses(model, batch, device)

    parts.run.save_minutes = 1e-9  # after every step
    with pytest.raises(Stop):
        loop.fit(Interrupted(parts), parts)
    assert Checkpoints(tmp_path / "parts" / "checkpoints").steps() == [9, 8]
    parts.run.resume = parts.run.output
    parts.run.save_minutes = 0
    run(parts)
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
    assert without_times(lines(tmp_path / "whole")) == without_times(lines(tmp_path / "parts"))


def test_a_step_reads_the_device_once(images, tmp_path):
    """Its losses stay there until they are logged at the end of the epoch."""
    reads = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            name = getattr(function, "__name__", "")
            if name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__format__"):
                reads.append(name)
            return super().__torch_function__(function, types, args, kwargs or {})

    class Watching(Classification):
        def losses(self, model, batch, device):
            (loss,) = super().losses(model, batch, device).values()
            return {name: (loss / 2).as_subclass(Watched) for name in ("first", "second")}

    config = small(images, tmp_path / "run", epochs=2)  # of six steps
    loop.fit(Watching(config), config)
    assert reads == (["tolist"] * 6 + ["tolist"]) * 2
    row = lines(tmp_path / "run")[-1]
    assert row["train_loss"] == pytest.approx(row["first"] + row["second"])


def test_workers_and_accumulation_change_nothing(images, tmp_path):
    """But rounding: neither who loads images nor in how many parts a step is computed."""
    configs = [small(images, tmp_path / name, epochs=2, color_jitter=0.4) for name in ("one", "two", "four")]
    configs[1].data.workers = 2
    configs[2].run.accumulate = 4
    for config in configs:
        config.model.drop_path_rate = 0.0
        run(config)
    assert_same_state(tmp_path / "one", tmp_path / "two")
    one, four = (lines(tmp_path / name)[-1]["train_loss"] for name in ("one", "four"))
    assert one == pytest.approx(four, rel=1e-3)
    # AdamW's steps hardly depend on the scale of gradients, its moments do.
    one, four = (
        torch.cat(
            [value.flatten() for name, value in weights(tmp_path / run, "optimizer").items() if "exp_avg" in name]
        )
        for run in ("one", "four")
    )
    assert float(one.norm()) == pytest.approx(float(four.norm()), rel=0.05)


@pytest.mark.slow
def test_a_compiled_model_trains(images, tmp_path):
    config = small(images, tmp_path / "run", epochs=1)
    config.model.drop_path_rate = 0.0
    run(config)
    config.run = dataclasses.replace(config.run, compile=True, output=tmp_path / "compiled")
    run(config)
    plain, compiled = (lines(tmp_path / name)[-1]["train_loss"] for name in ("run", "compiled"))
    assert plain == pytest.approx(compiled, rel=1e-3)
    assert weights(tmp_path / "compiled", "model").keys() == weights(tmp_path / "run", "model").keys()


def test_average_of_weights_is_evaluated_and_saved(images, tmp_path):
    config = small(images, tmp_path / "run", epochs=1)
    config.run.ema = 0.5
    seen = []

    class Watched(Classification):
        def losses(self, model, batch, device):
            seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
            return super().losses(model, batch, device)

    loop.fit(Watched(config), config)
    seen.append(weights(tmp_path / "run", "model"))
    expected = seen[0]
    for later in seen[1:]:
        expected = {name: 0.5 * value + 0.5 * later[name] for name, value in expected.items()}
    model, _ = load_model(str(tmp_path / "run" / "best.safetensors"))
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, expected[name])


def test_a_checkpoint_of_another_model_is_refused(images, tmp_path):
    config = small(images, tmp_path / "run", epochs=1)
    run(config)
    config.run.resume = config.run.output
    config.model.args["depths"] = "(1, 2, 4, 1)"
    with pytest.raises(CheckpointError, match=r"depths '\(1, 2, 2, 1\)' and not '\(1, 2, 4, 1\)'\."):
        run(config)
    write_record(config.run.output, config, Origin())  # what the file says is not believed
    with pytest.raises(CheckpointError, match="does not belong to this run: model"):
        run(config)
    config.model.args["depths"] = "(1, 2, 2, 1)"
    config.model.args["dims"] = "(8, 16, 16, 32)"
    write_record(config.run.output, config, Origin())
    with pytest.raises(CheckpointError, match=r"is \(.*\) there, \(.*\) here"):
        run(config)
    config = small(images, tmp_path / "run", epochs=1)
    config.run.resume = config.run.output
    config.data.batch_size = 6
    Classification(config)  # chooses what is open
    write_record(config.run.output, config, Origin())
    with pytest.raises(CheckpointError, match="its epochs have 6 steps, those of this run 8"):
        run(config)


def test_start_from_a_checkpoint_of_other_classes(images, tmp_path):
    config = small(images, tmp_path / "first", epochs=1)
    run(config)
    other = tmp_path / "images"
    for split in ("train", "val"):
        for name in ("left", "top", "none"):
            source = images / split / ("top" if name == "none" else name)
            (other / split).mkdir(parents=True, exist_ok=True)
            (other / split / name).symlink_to(source)
    second = small(other, tmp_path / "second", epochs=1)
    second.model.checkpoint = str(tmp_path / "first" / "best.safetensors")
    model = Classification(second).build_model()
    before, _ = load_model(second.model.checkpoint)
    assert torch.equal(model.stem.conv.weight, before.stem.conv.weight)
    assert model.head.fc.weight.shape[0] == 3


def test_a_start_from_a_checkpoint_of_another_model_is_refused(images, tmp_path):
    config = small(images, tmp_path / "first", epochs=1)
    run(config)
    config.model.checkpoint = str(tmp_path / "first" / "best.safetensors")
    config.model.args["dims"] = "(8, 16, 16, 32)"
    with pytest.raises(UserError, match=r"best\.safetensors: these weights cannot start a dat_nano.*architecture"):
        Classification(config).build_model()


def test_model_gets_the_size_it_is_trained_at(images, tmp_path):
    config = small(images, tmp_path / "run", epochs=1)
    config.data.img_size = 48
    run(config)
    model, info = load_model(str(tmp_path / "run" / "best.safetensors"))
    assert (info.img_size, model.img_size) == (48, (48, 48))


def test_weight_decay_spares_norms_biases_and_tables(images, tmp_path):
    config = small(images, tmp_path)
    model = Classification(config).build_model()
    optimizer = build_optimizer(model, config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] > 0 for p in group["params"]}
    spared = set(names.values()) - decayed
    assert any("bias_table" in name for name in spared)
    assert not any(name.endswith(("bias", "bias_table")) or "norm" in name for name in decayed)
    assert all(model.get_parameter(name).ndim > 1 for name in decayed)


def test_schedule_is_the_papers(images, tmp_path):
    config = recipes.ALL["dat-tiny-imagenet"]()
    config.data.batch_size = 512
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=config.optim.lr * 0.5)
    schedule = build_schedule(optimizer, config, steps_per_epoch=10)

    def rate(step):
        schedule.step_update(step)
        return optimizer.param_groups[0]["lr"]

    assert rate(0) == pytest.approx(0.5e-6)  # linear warm-up from 1e-6, halved with the batch
    assert rate(100) == pytest.approx((0.5e-6 + 0.5e-3) / 2, rel=1e-3)
    assert rate(200) == pytest.approx(0.5e-3)  # 20 epochs later the peak
    assert rate(1600) == pytest.approx(0.25e-3, rel=1e-3)  # half-way down the cosine
    assert rate(2999) == pytest.approx(0.5e-7, rel=0.2)


def rates(config, steps_per_epoch):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=config.optim.lr)
    schedule = build_schedule(optimizer, config, steps_per_epoch)

    def rate(step):
        schedule.step_update(step)
        return optimizer.param_groups[0]["lr"]

    return rate


def test_schedule_with_milestones_is_the_detectors():
    rate = rates(recipes.ALL["mask-rcnn-dat-tiny-1x"](), steps_per_epoch=100)
    assert rate(0) == pytest.approx(1e-7)
    assert rate(250) == pytest.approx(0.5e-4, rel=1e-2)  # 500 steps of warm-up
    assert rate(500) == rate(799) == pytest.approx(1e-4)
    assert rate(800) == rate(1099) == pytest.approx(1e-5)  # after 8 of 12 epochs
    assert rate(1100) == rate(1199) == pytest.approx(1e-6)  # after 11


@pytest.mark.parametrize(("schedule", "warmup"), [("cosine", 1.0), ("poly", 1.0), ("steps", 1.0), ("cosine", 9.0)])
def test_a_warm_up_as_long_as_the_run_ends_at_the_peak_without_a_remark(schedule, warmup, caplog):
    config = recipes.ALL["demo"]()
    config.run.epochs, config.optim.schedule, config.optim.warmup_epochs = 1, schedule, warmup
    rate = rates(config, steps_per_epoch=11)
    assert rate(0) == pytest.approx(config.optim.warmup_lr)
    assert rate(10) == config.optim.lr
    assert not caplog.records


def test_polynomial_schedule_is_the_segmenters():
    rate = rates(recipes.ALL["semantic-fpn-dat-tiny"](), steps_per_epoch=1263)
    assert rate(0) == pytest.approx(2e-4)
    assert rate(20_000) == pytest.approx(2e-4 * 0.5**0.9, rel=1e-3)  # half-way through 40,000 steps
    assert rate(39_999) < 1e-7
    rate = rates(recipes.ALL["upernet-dat-tiny"](), steps_per_epoch=1263)
    assert rate(750) == pytest.approx(3e-5, rel=1e-2)
    assert rate(1500) == pytest.approx(6e-5)
    assert rate(80_750) == pytest.approx(3e-5, rel=1e-3)  # half-way from the warm-up's end to 160,000


def test_a_run_of_steps_ends_inside_an_epoch(images, tmp_path):
    config = small(images, tmp_path / "run")
    steps = steps_per_epoch(Classification(config).train_set, config)
    config.run.steps = steps + 2
    taken = []

    class Counting(Classification):
        def losses(self, model, batch, device):
            taken.append(1)
            return super().losses(model, batch, device)

    loop.fit(Counting(config), config)
    assert len(taken) == steps + 2
    assert [line["epoch"] for line in lines(config.run.output)] == [0, 1]


def test_task_refuses_what_cannot_train(images, tmp_path):
    config = small(images, tmp_path)
    config.data.batch_size = 100
    with pytest.raises(UserError, match="48 training images do not fill a batch of 100"):
        run(config)
    config.data.batch_size = 7
    config.augment.mixup = 0.8
    with pytest.raises(UserError, match="an even number, not 7"):
        Classification(config)
    config = small(images, tmp_path)
    config.model.args["postion"] = "none"
    with pytest.raises(UserError, match="postion"):
        Classification(config).build_model()
