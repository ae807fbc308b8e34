import matplotlib.pyplot as plt
import numpy as np
import pytest

from companion.report.embeddings import grid, neighbours, tsne
from robust_features.settings import UserError

RANDOM = np.random.default_rng(0).random((20, 5))


def embed(features, perplexity=5.0, classes=2):
    return tsne({"clean": {"Z_r": features}}, np.arange(len(features)) % classes, perplexity=perplexity, seed=0)


@pytest.mark.parametrize(
    ("features", "note"),
    [
        (np.zeros((20, 5)), "all features alike"),
        (np.full((20, 5), 1e30), "all features alike"),
        (np.zeros((20, 0)), "all features alike"),
        (RANDOM[:1], "all features alike"),
        (RANDOM[:2], "perplexity 0.333 for 2 images"),
        (RANDOM[:15], "perplexity 4.67 for 15 images"),
        (np.repeat(RANDOM[:2], 10, axis=0), ""),
        (RANDOM[:, :1], ""),
        (RANDOM[:, 0], ""),
        (RANDOM * 1e-30, ""),
        (RANDOM * 1e30, ""),
        (RANDOM > 0.5, ""),
    ],
    ids=str,
)
def test_odd_features_have_an_embedding_and_a_note_of_what_was_done(features, note):
    points = embed(features, perplexity=15 if len(features) == 15 else 5)
    assert np.isfinite(points[["x", "y"]].to_numpy()).all() and len(points) == len(features)
    assert ({*points["note"]} if note else "note" not in points) == ({note} if note else True)
    drawing = grid(points, ["a", "b"])
    assert [text.get_text() for text in drawing.axes[0].texts] == [note] * bool(note)
    plt.close(drawing)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused_and_counted(value):
    with pytest.raises(UserError, match="t-SNE of clean, Z_r: the features of 1 of 20 images are not finite"):
        embed(np.where(np.arange(100).reshape(20, 5) == 7, value, RANDOM))


def test_ordinary_features_are_embedded_as_scikit_learn_does():
    from sklearn.manifold import TSNE

    direct = TSNE(perplexity=5, init="pca", random_state=0).fit_transform(RANDOM)
    assert np.array_equal(embed(RANDOM)[["x", "y"]], direct)


def test_a_class_has_its_own_colour_and_name_where_the_first_is_absent():
    points = embed(RANDOM, classes=3)
    drawing = grid(points[points["label"] > 0], ["$a", "$b", "_c"])
    (legend,), cloud = drawing.legends, drawing.axes[0].collections[0]
    colours = dict(zip(("a", "b", "c"), [h.get_color() for h in legend.legend_handles], strict=True))
    assert [text.get_text() for text in legend.get_texts()] == [r"\$a", r"\$b", r"$\_$c"]
    assert {*map(tuple, cloud.to_rgba(cloud.get_array()))} == {tuple(colours["b"]), tuple(colours["c"])}
    plt.close(drawing)


def test_each_image_is_judged_by_the_others_that_are_nearest():
    line, labels = np.array([0.0, 1.0, 2.1, 10.0, 11.0, 12.1]), [0, 0, 1, 1, 1, 0]
    found = neighbours(line, labels, count=2)
    assert found.n == 6 and found.value == pytest.approx(100 * 2 / 6)
    assert neighbours(line, labels, count=1).value == pytest.approx(100 * 4 / 6)


def test_clusters_have_neighbours_of_their_class_and_noise_has_not():
    draw, labels = np.random.default_rng(1), np.repeat([0, 1], 200)
    planted = draw.normal(size=(400, 2, 2)) + 20 * labels[:, None, None]
    assert neighbours(planted, labels).value == 100
    noise = neighbours(draw.normal(size=(400, 4)), labels)
    assert noise.low < 50 < noise.high
    with pytest.raises(UserError, match="nearest neighbours: the features of 1 of 20 images are not finite"):
        neighbours(np.where(np.arange(100).reshape(20, 5) == 7, np.nan, RANDOM), np.zeros(20, int))
