"""Sections on the images: colours, clusters, and the data of the page's script."""

import numpy as np
import pytest

from mocokit.reporting import about_images
from mocokit.reporting.clusters import cluster
from mocokit.reporting.neighbours import neighbours
from tests.reporting.made import blobs, made_images, noisy_files


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("about")
    return made_images(folder / "d", noisy_files(5, "train/a", "train/b", "test/a", "test/b"), folder / "cache")


@pytest.fixture(scope="module")
def features():
    return blobs(10, 2)[0]


def test_ways_to_colour(images, features):
    columns = {
        "side": ["l", "r"] * 9 + [None, ""],
        "name": [str(n) for n in range(20)],
        "one": ["x"] * 20,
        "many": [str(n) for n in range(20)],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(about_images, "MOST_KINDS", 5)
        found = {c.name: c for c in about_images.colourings(images, cluster(features, 2, 0), columns)}
    assert list(found) == ["class", "cluster", "split", "side"]
    assert found["class"].codes.tolist() == images.labels.tolist()
    assert [found["side"].kinds[c] if c >= 0 else None for c in found["side"].codes] == ["l", "r"] * 9 + [None, None]
    assert found["split"].kinds == ["test", "train"]
    assert len(found["cluster"].data()["palette"]) == 2


def test_clusters_name_their_classes(images, features):
    html = about_images.cluster_section(images, cluster(features, 2, 0)).html
    assert html.count("<h3>Cluster") == 2
    assert "a 50 %" in html
    assert html.count("data-rows") == 2


def test_data_of_the_page(images, features, monkeypatch):
    near = neighbours(features)
    colours = about_images.colourings(images, cluster(features, 2, 0), {})
    monkeypatch.setattr(about_images, "THUMBNAILS", 8)
    data = about_images.page_data(images, near, colours, [19, 3, 19, 7], seed=0)
    assert data["names"] == images.names
    assert data["neighbours"] == near.rows[:, :5].tolist()
    assert len(data["thumbnails"]) == 8
    assert {19, 3, 7} <= data["thumbnails"].keys()
    assert len(about_images.page_data(images, near, colours, range(20), 0)["thumbnails"]) == 8


def test_neighbours_with_their_cosines(images, features):
    near = neighbours(features)
    html = about_images.neighbour_section([4], near).html
    assert f'data-rows="{[4, *near.rows[4, :5].tolist()]}"' in html
    assert f"{near.similarity[4, 0]:.2f}" in html
    assert len(set(about_images.shown_queries(images, 0))) == 12


@pytest.mark.parametrize(("most", "said"), [(100, "All 20 images"), (9, "9 of 20 images, drawn at random")])
def test_the_map_says_what_is_on_it(images, most, said):
    from dataclasses import replace

    few = replace(images, parts=tuple(p.sample(most, 0) for p in images.parts[:1]) if most < 20 else images.parts)
    few.__dict__.pop("names", None)
    html = about_images.map_section(few, "<chart>").html
    assert said in html
    assert "<chart>" in html
    assert np.all(few.splits != "")
