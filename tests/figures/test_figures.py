"""Figures show what was recorded, where it is."""

from __future__ import annotations

import json
import math
from xml.etree import ElementTree

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest
import torch

from deformvit import DeformableAttention, UserError, figures, load_model, record
from deformvit.figures import common
from deformvit.figures.common import COLOURS
from deformvit.figures.offsets import flow_colours
from deformvit.models.importance import key_importance

HW = (40, 72)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def trace():
    model, _ = load_model("dat_nano.cifar10")
    torch.manual_seed(0)
    with torch.inference_mode(), record(model) as trace:
        model(torch.randn(2, 3, *HW))
    return trace


@pytest.fixture(scope="module")
def image():
    return torch.rand(3, *HW)


def circles(axis):
    """Places (x, y) and areas of the largest set of circles in a panel."""
    found = max(axis.collections, key=lambda c: len(c.get_offsets()))
    return np.asarray(found.get_offsets()), found.get_sizes()


def test_keys_are_those_of_highest_score(trace, image):
    figure = figures.keys(image, trace.deformable, 1, count=20)
    places, areas = circles(figure.axes[1])
    found = key_importance(trace.deformable, 1)
    scores = torch.cat([entry.scores.flatten() for entry in found])
    pixels = torch.cat([entry.layer.index_pixels(entry.keys, HW).flatten(0, 1) for entry in found])
    best = scores.topk(20).indices.flip(0)
    np.testing.assert_allclose(places, pixels[best].flip(-1).numpy(), rtol=1e-5)
    np.testing.assert_allclose(areas / areas.max(), (scores[best] / scores.max()).numpy(), rtol=1e-4)
    share = 100 * float(scores[best].sum() / scores.sum())
    assert figure.axes[1].get_label() == f"20 keys with {share:.0f} % of the importance"


def test_keys_of_a_point_begin_at_its_query(trace, image):
    layers = trace.deformable
    panel = figures.keys(image, layers, point=(3.0, 70.0), count=20).axes[1]
    _, areas = circles(panel)
    everywhere = circles(figures.keys(image, layers, count=20).axes[1])[1]
    query = layers[-1].query_at((3.0, 70.0), HW)
    scores, others = (
        torch.cat([entry.scores.flatten() for entry in key_importance(layers, 0, chosen)]).topk(20).values.flip(0)
        for chosen in (query, None)
    )
    np.testing.assert_allclose(areas / areas.max(), (scores / scores.max()).numpy(), rtol=1e-4)
    assert not np.allclose(everywhere, areas, rtol=0.1)
    np.testing.assert_allclose(everywhere / everywhere.max(), (others / others.max()).numpy(), rtol=1e-4)
    row, column = divmod(query, layers[-1].feature_hw[1])
    y, x = layers[-1].index_pixels(torch.tensor([row, column], dtype=torch.float32), HW).tolist()
    assert panel.collections[-1].get_offsets().tolist() == [pytest.approx([x, y])]


@pytest.mark.parametrize("number", range(4))
def test_query_shows_the_strongest_keys_of_a_head(trace, image, number):
    layer = trace.deformable[number]
    figure = figures.query(image, [[("a", layer)]], (9.0, 50.0), index=1, heads=[2], count=3)
    places, areas = circles(figure.axes[0])
    found = layer.attend([layer.query_at((9.0, 50.0), HW)], 1)
    best = found.weights[1, 0].topk(3).indices.flip(0)
    np.testing.assert_allclose(places, layer.index_pixels(found.keys[1, 0, best], HW).flip(-1).numpy(), rtol=1e-5)
    weights = found.weights[1, 0, best] / found.weights[1, 0].max()
    np.testing.assert_allclose(areas / areas.max(), weights.numpy(), rtol=1e-5)


def test_query_of_all_heads_adds_up_those_with_the_same_keys(trace, image):
    layer = trace.deformable[0]
    figure = figures.query(image, [[("a", layer)]], (20.0, 36.0), count=10**6)
    found = layer.attend([layer.query_at((20.0, 36.0), HW)])
    places, areas = circles(figure.axes[0])
    assert len(places) == 2 * found.weights.shape[-1]  # two groups
    per_group = found.weights[:, 0].unflatten(0, (2, -1)).sum(1).flatten()
    weights = np.sort((per_group / per_group.max()).numpy())
    np.testing.assert_allclose(np.sort(areas) / areas.max(), weights, rtol=1e-4)
    assert figure.axes[0].get_label() == f"a | all heads: {len(places)} keys, 100 % of its attention"


def test_query_of_every_layer_beside_another_models(trace, image):
    rows = [[("ours", layer), ("again", layer)] for layer in trace.layers]
    figure = figures.query(image, rows, (39.9, 71.9), heads="each")
    assert len(figure.axes) == sum(2 * layer.num_heads for layer in trace.layers)
    assert [axis.get_label().split(" | ")[0] for axis in figure.axes[:4]] == ["ours", "ours", "again", "again"]


def test_the_star_is_the_nearest_query(trace, image):
    layer = trace.deformable[0]
    axis = figures.query(image, [[("a", layer)]], (19.0, 50.0)).axes[0]
    star = min(axis.collections, key=lambda c: len(c.get_offsets())).get_offsets()[0]
    assert abs(star[0] - 50) <= layer.stride / 2
    assert abs(star[1] - 19) <= layer.stride / 2


def test_offset_statistics():
    """Offsets that are known: half the range down, none to the right."""
    layer = DeformableAttention(8, 2, 2, offset_range=2.0).eval()
    with torch.no_grad():
        last = layer.points.offset_net[-1]
        last.weight.zero_()
        last.register_forward_hook(
            lambda module, inputs, output: output + torch.tensor([math.atanh(0.5), 0.0])[:, None, None]
        )
    with torch.no_grad(), record(torch.nn.Sequential(layer)) as trace:
        layer(torch.randn(1, 8, 6, 9))
    both = figures.offset_statistics(trace.deformable, (60, 90))
    assert [entry.group for entry in both] == [1, 2]
    for entry in both:
        # Half of 2 / 6 of the half map is a sixth; positions span 5 of the 6 rows' distances, each 10 pixels.
        assert entry.mean == pytest.approx(0.5 * 2 / 6 / 2 * 50, rel=1e-4)
        assert entry.largest == pytest.approx(entry.mean, rel=1e-4)
        assert entry.deviation == pytest.approx(0, abs=1e-4)
        assert entry.saturated == 0
        assert str(entry.outside) == "all on the map"


def test_saturated_and_outside_points_are_counted(trace):
    layer = trace.deformable[0]
    entry = figures.offset_statistics([layer], HW)[0]
    reference, deformed = layer.points()
    reach = (deformed[0, 0] - reference).abs() * torch.tensor(layer.feature_hw) / 2.0
    assert entry.saturated == pytest.approx(float((reach >= 0.95).float().mean()))
    beyond = [max(abs(y) - 1, 0, abs(x) - 1) for y, x in deformed[0, 0].flatten(0, 1).tolist()]
    assert entry.outside.count == sum(far > 0 for far in beyond) > 0
    assert entry.outside.points == len(beyond)
    # A half of the map's cells, less one, to a unit of position.
    rows = [
        max(max(abs(y) - 1, 0) * (layer.feature_hw[0] - 1), max(abs(x) - 1, 0) * (layer.feature_hw[1] - 1)) / 2
        for y, x in deformed[0, 0].flatten(0, 1).tolist()
    ]
    assert entry.outside.farthest == pytest.approx(max(rows), rel=1e-4)
    assert str(entry.outside) == f"{entry.outside.count} of {len(beyond)} off the map, by up to {max(rows):.1f} cells"


def test_flow_colours():
    right, down, none = flow_colours(torch.tensor([[[0.0, 2.0], [2.0, 0.0], [0.0, 0.0]]]), 2.0)[0]
    assert right.tolist() == [1, 0, 0]
    np.testing.assert_allclose(down, [0.5, 1, 0], atol=1e-6)
    assert none.tolist() == [1, 1, 1]


def test_offsets_draw_a_panel_a_group(trace, image):
    figure = figures.offsets(image, trace.deformable)
    titles = [axis.get_label().split(" | ")[0] for axis in figure.axes if axis.get_label()]
    assert titles[:3] == ["stage 2, block 2, group 1", "stage 2, block 2, group 2", "stage 3, block 2, group 1"]
    assert len(titles) == sum(layer.deformed.shape[1] for layer in trace.deformable)
    drawn = figure.axes[0]
    layer = trace.deformable[0]
    move = layer.pixels(layer.deformed[0, 0], HW) - layer.pixels(layer.reference, HW)
    longest = max(entry.largest for entry in figures.offset_statistics([layer], HW))
    np.testing.assert_allclose(drawn.images[1].get_array(), flow_colours(move, longest), atol=1e-6)


def test_objects_are_the_last_layers_of_the_last_two_stages(trace, image):
    figure = figures.objects(image, trace.deformable)
    titles = [axis.get_label().split(" | ")[0] for axis in figure.axes]
    assert titles == ["stage 3, block 4", "stage 4, block 1"]
    points, _ = circles(figure.axes[1])
    expected = trace.deformable[-1].pixels(trace.deformable[-1].deformed[0, 0], HW).flatten(0, 1).flip(-1)
    np.testing.assert_allclose(points, expected.numpy(), rtol=1e-5)


def test_curves(tmp_path):
    for name, key, values in (("a", "top1", (10, 30)), ("b", "mIoU", (5, 9)), ("c", "top1", (20, 25))):
        (tmp_path / name).mkdir()
        lines = [{"epoch": i, "train_loss": 3 - i, key: value} for i, value in enumerate(values)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    figure = figures.curves({name: figures.read_log(tmp_path / name) for name in "abc"})
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss", "top-1 (%)", "mIoU"]
    assert [line.get_label() for line in figure.axes[1].lines] == ["a", "c"]
    assert figure.axes[1].lines[1].get_xydata().tolist() == [[1, 20], [2, 25]]
    (tmp_path / "c" / "metrics.jsonl").write_text('{"epoch": 0}\n{"epo')
    assert figures.read_log(tmp_path / "c") == [{"epoch": 0}]  # a killed run may leave a cut line
    (tmp_path / "c" / "metrics.jsonl").write_text('{"epo')
    with pytest.raises(UserError, match=r"metrics.jsonl: holds no epochs yet"):
        figures.read_log(tmp_path / "c")
    with pytest.raises(UserError, match="no such file"):
        figures.read_log(tmp_path / "d")


def test_a_comparison_of_runs_that_are_not_all_finished():
    """Rows with two seeds each; one run has just begun, one row has not, one is far behind."""
    values = {"near": ([50, 60], [54]), "best": ([55, 62], [57, 64]), "none": ([], []), "far": ([20, 30], [22, 34])}
    rows = {
        name: [[{"epoch": epoch, "top1": top1} for epoch, top1 in enumerate(run)] for run in runs]
        for name, runs in values.items()
    }
    by_epoch, last = figures.comparison(rows, 2).axes
    assert [line.get_label() for line in by_epoch.lines] == ["near", "best", "far"]
    assert [list(line.get_ydata()) for line in by_epoch.lines] == [[50, 60], [56, 63], [21, 32]]
    assert [list(line.get_xdata()) for line in last.lines] == [[60], [60], [63], [62, 64]]  # a mean, its seeds
    assert [line.get_color() for line in last.lines] == [line.get_color() for line in by_epoch.lines[:2] for _ in "ab"]
    assert not figures.comparison(rows, 3).axes[1].lines


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda t, i: figures.keys(i, []), "no deformable layers"),
        (lambda t, i: figures.offsets(i, []), "no deformable layers"),
        (lambda t, i: figures.objects(i, []), "no deformable layers"),
        (lambda t, i: figures.query(i, [], (0, 0)), "no attention layers"),
        (lambda t, i: figures.curves({}), "no runs"),
        (lambda t, i: figures.keys(i, t.deformable, count=0), "count must be at least 1, got 0"),
        (lambda t, i: figures.points(i, t.deformable, 2), "from 0 to 1, the recorded batch, got 2"),
        (lambda t, i: figures.points(i, t.layers), "which has no deformed points"),
        (lambda t, i: figures.query(i, [[("a", t.layers[0])]], (41, 0)), "on the image of 40 x 72 pixels"),
        (lambda t, i: figures.query(i, [[("a", t.layers[0])]], (0, 0), heads=[99]), "there is no head 99"),
        (lambda t, i: figures.query(i, [[("a", t.layers[0])]], (0, 0), heads="all"), "heads must be"),
    ],
)
def test_wrong_arguments_are_told(trace, image, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(trace, image)


def test_a_saved_picture_shows_image_and_points(trace, image, tmp_path):
    """The pixels at the drawn places have the colours of the groups, and beside them those of the image."""
    plain = torch.zeros_like(image)
    plain[2] = 1
    layer = trace.deformable[-1]
    figure = figures.points(plain, [layer], title="$1$.png")
    figure.savefig(tmp_path / "points.png", dpi=200)
    width, height = (round(200 * inches) for inches in figure.get_size_inches())
    pixels = matplotlib.image.imread(tmp_path / "points.png")[..., :3]
    assert pixels.shape == (height, width, 3)
    figure.set_dpi(200)
    for group, axis in enumerate(figure.axes):
        places = layer.pixels(layer.deformed[0, group], HW).reshape(-1, 2).flip(-1).numpy()
        column, row = axis.transData.transform(places).round().astype(int).T
        expected = matplotlib.colors.to_rgb(COLOURS[group])
        inside = (column >= 0) & (column < width) & (row > 0) & (row < height)
        same = np.abs(pixels[height - 1 - row[inside], column[inside]] - expected).max(1) < 0.01
        assert same.mean() > 0.9  # of points that lie one on another, one may be an edge
        blue = np.abs(pixels - common.muted(common.picture(plain))[0, 0]).max(2) < 0.01
        left, right = (int(x) for x in axis.transData.transform([(0, 0), (HW[1], 0)])[:, 0])
        assert blue[:, left:right].sum() > 0.5 * (right - left) ** 2 * HW[0] / HW[1]
    assert (pixels[:5] == 1).all()  # the margin is white


def test_figures_are_saved_as_vectors(trace, image, tmp_path):
    figure = figures.keys(image, trace.deformable, title="$1$.png", count=20)
    figure.savefig(tmp_path / "keys.svg")
    root = ElementTree.parse(tmp_path / "keys.svg").getroot()
    (circles_drawn,) = [group for group in root.iter(f"{SVG}g") if group.get("id", "").startswith("PathCollection")]
    assert len(list(circles_drawn.iter(f"{SVG}use")) or list(circles_drawn.iter(f"{SVG}path"))) == 20
    assert len(list(root.iter(f"{SVG}image"))) == 2
    figure.savefig(tmp_path / "keys.pdf")
    content = (tmp_path / "keys.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert content.rstrip().endswith(b"%%EOF")
    assert content.count(b"/Subtype /Image") == 2  # both panels
