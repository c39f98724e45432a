"""Semantic FPN and UperNet: any sizes, ignored pixels, windows, scales, learning."""

from __future__ import annotations

import pytest
import torch

from deformvit import UserError
from deformvit.metrics.segmentation import SegmentationMetrics
from deformvit.systems.segmenter import starts

SYSTEMS = ["semantic_fpn", "upernet"]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", ["dat_nano", "swin_tiny_patch4_window7_224"])
def test_training_and_predicting_at_any_size(make_segmenter, system, name):
    segmenter = make_segmenter(system, name=name)
    labels = torch.randint(0, 3, (2, 50, 71))
    losses = segmenter(torch.rand(2, 3, 50, 71), labels)
    assert set(losses) == {"loss_decode"} | ({"loss_auxiliary"} if system == "upernet" else set())
    sum(losses.values()).backward()
    assert [n for n, p in segmenter.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    segmenter.eval()
    with torch.inference_mode():
        assert segmenter(torch.rand(1, 3, 50, 71)).shape == (1, 3, 50, 71)
        assert segmenter.predict(torch.rand(3, 121, 67)).shape == (121, 67)


def test_auxiliary_loss_is_weighted(make_segmenter):
    images, labels = torch.rand(2, 3, 32, 48), torch.randint(0, 3, (2, 32, 48))
    plain = make_segmenter("upernet", dropout=0.0)
    doubled = make_segmenter("upernet", dropout=0.0, auxiliary=0.8)
    doubled.load_state_dict(plain.state_dict())
    one, two = plain(images, labels), doubled(images, labels)
    torch.testing.assert_close(two["loss_auxiliary"], 2 * one["loss_auxiliary"])
    torch.testing.assert_close(two["loss_decode"], one["loss_decode"])
    assert make_segmenter("upernet", auxiliary=0.0).auxiliary is None


@pytest.mark.parametrize("system", SYSTEMS)
def test_ignored_pixels_do_not_count(make_segmenter, system):
    segmenter = make_segmenter(system, dropout=0.0)
    logits = torch.randn(2, 3, 8, 12)
    labels = torch.randint(0, 3, (2, 8, 12))
    counted = labels.clone()
    counted[:, :, 6:] = 255
    expected = torch.nn.functional.cross_entropy(logits[:, :, :, :6], labels[:, :, :6])
    torch.testing.assert_close(segmenter._loss(logits, counted), expected)
    losses = segmenter(torch.rand(2, 3, 32, 48), torch.full((2, 32, 48), 255))
    assert sum(losses.values()).item() == 0.0
    sum(losses.values()).backward()


def test_upernet_needs_two_images(make_segmenter):
    with pytest.raises(UserError, match="at least 2 images"):
        make_segmenter("upernet")(torch.rand(1, 3, 32, 48), torch.zeros(1, 32, 48, dtype=torch.long))
    make_segmenter("semantic_fpn")(torch.rand(1, 3, 32, 48), torch.zeros(1, 32, 48, dtype=torch.long))


def test_windows_cover_and_average(make_segmenter, monkeypatch):
    segmenter = make_segmenter("semantic_fpn").eval()
    seen = []

    def logits(images):
        seen.append(tuple(images.shape[-2:]))
        return images * len(seen)

    monkeypatch.setattr(segmenter, "_logits", logits)
    image = torch.rand(1, 3, 5, 9)
    total = segmenter._slide(image, window=6, stride=4)
    assert seen == [(5, 6), (5, 6)]  # columns 0-5 and 3-8
    torch.testing.assert_close(total[..., :3], image[..., :3])
    torch.testing.assert_close(total[..., 3:6], image[..., 3:6] * 1.5)
    torch.testing.assert_close(total[..., 6:], image[..., 6:] * 2)
    assert starts(10, 4, 3) == [0, 3, 6]
    assert starts(11, 4, 3) == [0, 3, 6, 7]
    assert starts(4, 4, 3) == [0]
    assert starts(3, 4, 3) == [0]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_window_that_holds_the_image_changes_nothing(make_segmenter, system):
    segmenter = make_segmenter(system).eval()
    image = torch.rand(3, 60, 91)
    with torch.inference_mode():
        assert torch.equal(segmenter.predict(image), segmenter.predict(image, window=100))


def test_scales_and_flips_are_averaged(make_segmenter, monkeypatch):
    """Logits are the image itself: the class of a pixel is its strongest channel, wherever it is computed."""
    segmenter = make_segmenter("semantic_fpn").eval()
    seen = []

    def logits(images):
        seen.append(tuple(images.shape[-2:]))
        return 20 * images

    monkeypatch.setattr(segmenter, "_logits", logits)
    image = torch.zeros(3, 64, 96)
    image[0, :, :30], image[1, :40, 30:], image[2, 40:, 30:] = 1, 1, 1
    labels = segmenter.predict(image, scales=(0.5, 1.0, 1.5), flip=True)
    assert seen == [(24, 36)] * 2 + [(48, 72)] * 2 + [(72, 108)] * 2
    inner = torch.ones(64, 96, dtype=torch.bool)
    inner[:, 27:33], inner[37:43] = False, False  # borders between classes are blurred by resizing
    assert torch.equal(labels[inner], image.argmax(0)[inner])


@pytest.mark.parametrize("system", SYSTEMS)
def test_one_image_is_learned(make_segmenter, system):
    segmenter = make_segmenter(system, dropout=0.0)
    image = torch.rand(3, 48, 72) * 0.2
    labels = torch.zeros(48, 72, dtype=torch.long)
    labels[8:30, 10:40], labels[20:44, 50:66] = 1, 2
    for value in (1, 2):
        image[value][labels == value] += 0.7
    batch, targets = torch.stack([image, image.flip(2)]), torch.stack([labels, labels.flip(1)])
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 80)
    segmenter.train()
    for _ in range(80):
        loss = sum(segmenter(batch, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    segmenter.eval()
    with torch.inference_mode():
        found = segmenter.predict(image)
    metrics = SegmentationMetrics(3)
    metrics.update(found, labels)
    assert metrics.compute()["mIoU"] >= 99
