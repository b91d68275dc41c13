"""Label files, maximum entropy, AVA's lists, and `nima prepare`."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nima_training.cli.prepare import app as prepare
from nima_training.data import ava, sources
from nima_training.data.manifest import build_manifest, data_sha256
from nima_training.data.maxent import maximum_entropy, variance_limits
from nima_training.split import group_near_duplicates

RATINGS = np.arange(1, 11)
MakeSet = Callable[[Path, int], tuple[Path, Path]]


@pytest.mark.parametrize("mean", [1.05, 2.5, 5.0, 5.5, 9.7])
def test_maximum_entropy_of_a_mean(mean: float) -> None:
    p = maximum_entropy(mean)
    assert p.sum() == pytest.approx(1)
    assert p @ RATINGS == pytest.approx(mean, abs=1e-6)
    # Exponential in the rating: log-ratios of neighbours are equal.
    assert np.diff(np.log(p)).std() < 1e-6


def test_maximum_entropy_at_the_centre_is_uniform() -> None:
    np.testing.assert_allclose(maximum_entropy(5.5), 0.1, atol=1e-9)


@pytest.mark.parametrize(
    ("mean", "std"), [(5.2, 1.4), (3.0, 0.6), (8.8, 2.0), (5.5, 4.4), (4.0, 0.02)]
)
def test_maximum_entropy_of_mean_and_std(mean: float, std: float) -> None:
    p = maximum_entropy(mean, std)
    assert p @ RATINGS == pytest.approx(mean, abs=1e-5)
    # Inside the margin kept from the infeasible limits the spread is met exactly.
    assert np.sqrt(p @ (RATINGS - mean) ** 2) == pytest.approx(std, abs=2e-2)
    if 0.5 < std < 3:
        other = maximum_entropy(mean)
        entropy = -(p * np.log(p)).sum()
        assert entropy <= -(other * np.log(other)).sum() + 1e-9  # a constraint costs entropy


def test_maximum_entropy_refuses_impossible_moments() -> None:
    low, high = variance_limits(4.5)
    assert (low, high) == (0.25, 3.5 * 5.5)
    for mean, std in ((0.5, None), (float("nan"), None), (4.5, 0.1), (4.5, 4.6), (1.0, 2.0)):
        with pytest.raises(ValueError):
            maximum_entropy(mean, std)


def ava_line(index: int, image_id: int, counts: str = "1 2 3 4 5 6 7 8 9 10") -> str:
    return f"{index} {image_id} {counts} 1 22 1396"


def test_ava_txt(tmp_path: Path) -> None:
    path = tmp_path / "AVA.txt"
    path.write_text(ava_line(1, 953619) + "\n" + ava_line(2, 953958, "0 0 0 0 4 0 0 0 0 0") + "\n")
    frame = sources.read_ava(path, {1: "Abstract"})
    assert frame["image_id"].tolist() == ["953619", "953958"]
    assert frame["votes"].tolist() == [55, 4]
    np.testing.assert_allclose(frame.loc[0, sources.PROBABILITIES].to_numpy(float), RATINGS / 55)
    assert frame["tags"][0] == ["Abstract", "tag:22", "challenge:1396"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("3 17 1 2 3", "row 2: 5 columns"),
        (ava_line(3, 17, "1 nan 3 4 5 6 7 8 9 10"), "row 2: a rating is NaN"),
        (ava_line(3, 17, "1 -2 3 4 5 6 7 8 9 10"), "row 2: a rating is negative"),
        (ava_line(3, 17, "0 0 0 0 0 0 0 0 0 0"), "row 2: no votes"),
        (ava_line(3, 953619), "row 2: image 953619 appears twice"),
        (ava_line(3, 17, "1 x 3 4 5 6 7 8 9 10"), "row 2: could not convert"),
    ],
)
def test_malformed_ava_rows_are_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "AVA.txt"
    path.write_text(ava_line(1, 953619) + "\n" + line + "\n")
    with pytest.raises(sources.LabelError, match=reason):
        sources.read_ava(path)


def test_label_json(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(
        json.dumps([{"image_id": "231893", "label": [2, 8, 19, 36, 76, 52, 16, 9, 3, 2]}])
    )
    frame = sources.read_label_json(path)
    assert frame["votes"][0] == 223
    path.write_text(
        json.dumps(
            [{"image_id": "1", "label": [1] * 10}, {"image_id": "2", "label": [None] + [1] * 9}]
        )
    )
    with pytest.raises(sources.LabelError, match="row 2: a rating is NaN"):
        sources.read_label_json(path)


def test_tid2013_groups_by_reference(tmp_path: Path) -> None:
    (tmp_path / "mos_with_names.txt").write_text(
        "5.51429 I01_01_1.bmp\n3.25 i01_01_2.bmp\n2 I02_04_5.bmp\n"
    )
    frame = sources.read_tid2013(tmp_path)
    assert frame["group"].tolist() == ["i01", "i01", "i02"]
    assert frame["tags"][2] == ["distortion:04"]
    mean = frame[sources.PROBABILITIES].to_numpy() @ RATINGS
    np.testing.assert_allclose(mean, [6.51429, 4.25, 3], atol=1e-6)
    (tmp_path / "mos_std.txt").write_text("0.7\n0.9\n1.1\n")
    p = sources.read_tid2013(tmp_path)[sources.PROBABILITIES].to_numpy()
    std = np.sqrt((p * (RATINGS - (p @ RATINGS)[:, None]) ** 2).sum(1))
    np.testing.assert_allclose(std, [0.7, 0.9, 1.1], atol=1e-3)
    (tmp_path / "mos_std.txt").write_text("0.7\n")
    with pytest.raises(sources.LabelError, match="1 rows"):
        sources.read_tid2013(tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_own_table(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"own{suffix}"
    frame = pd.DataFrame({"image_id": ["a", "b"], "mean": [4.2, 6.6], "std": [1.2, np.nan]})
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    p = sources.read_own(path)[sources.PROBABILITIES].to_numpy()
    np.testing.assert_allclose(p @ RATINGS, [4.2, 6.6], atol=1e-6)


def test_nan_in_own_table_is_refused_with_its_row(tmp_path: Path, make_set: MakeSet) -> None:
    _, labels = make_set(tmp_path, 4)
    lines = labels.read_text().splitlines()
    lines[3] = lines[3].rsplit(",", 1)[0] + ","
    labels.write_text("\n".join(lines) + "\n")
    with pytest.raises(sources.LabelError, match=r"labels\.csv, row 4: a rating is NaN"):
        sources.read_own(labels)


def test_prepare_reports_what_it_drops(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make_set: MakeSet,
    make_photo: Callable[..., Image.Image],
) -> None:
    photos, labels = make_set(tmp_path, 24)
    (photos / "photo003.png").write_bytes(b"not a photo at all")
    whole = (photos / "photo004.png").read_bytes()
    (photos / "photo004.png").write_bytes(whole[: len(whole) // 2])
    (photos / "photo005.png").unlink()
    shutil.copy(photos / "photo006.png", photos / "photo007.png")
    make_photo(99, (16, 16)).save(photos / "photo008.png")
    out = tmp_path / "manifest.parquet"
    prepare([str(labels), "--photos", str(photos), "--out", str(out)], standalone_mode=False)
    report = json.loads(out.with_suffix(".report.json").read_text())
    dropped = {name: reason for reason, names in report["dropped"].items() for name in names}
    assert set(dropped) == {f"photo00{n}" for n in (3, 4, 5, 7, 8)}
    assert dropped["photo005"] == "missing"
    assert dropped["photo007"] == "duplicate"
    assert dropped["photo008"] == "too small"
    frame = pd.read_parquet(out)
    assert len(frame) == report["kept"] == 19
    assert "19 kept" in capsys.readouterr().out
    # A second run reuses the checks and gives the same manifest.
    before = out.read_bytes()
    prepare([str(labels), "--photos", str(photos), "--out", str(out)], standalone_mode=False)
    assert pd.read_parquet(out).equals(frame)
    assert before == out.read_bytes()


def test_near_duplicates_stay_on_one_side(
    tmp_path: Path, make_set: MakeSet, make_photo: Callable[..., Image.Image]
) -> None:
    photos, labels = make_set(tmp_path, 40)
    for index in range(0, 40, 2):  # odd photos become re-encoded copies of the even ones
        make_photo(index).resize((144, 128)).save(photos / f"photo{index + 1:03d}.png")
    build_manifest(sources.read_own(labels), photos, tmp_path / "m.parquet")
    split = pd.read_parquet(tmp_path / "m.parquet").set_index("image_id")["split"]
    assert all(split[f"photo{i:03d}"] == split[f"photo{i + 1:03d}"] for i in range(0, 40, 2))
    assert split.nunique() > 1


def test_near_duplicates_join_the_groups_that_were_given(
    tmp_path: Path, make_set: MakeSet, make_photo: Callable[..., Image.Image]
) -> None:
    photos, labels = make_set(tmp_path, 24)
    make_photo(0).resize((144, 128)).save(photos / "photo023.png")
    ratings = sources.read_own(labels)
    ratings["group"] = [f"scene{i // 3}" for i in range(24)]
    for seed in range(4):
        build_manifest(ratings, photos, tmp_path / "m.parquet", seed=seed)
        frame = pd.read_parquet(tmp_path / "m.parquet")
        assert (frame.groupby("group")["split"].nunique() == 1).all()
        split = frame.set_index("group")["split"]
        assert set(split["scene0"]) == set(split["scene7"])  # they share a picture


def test_near_duplicates_are_all_found_however_many_hashes() -> None:
    rng = np.random.default_rng(3)
    hashes = [int(value) for value in rng.integers(0, 2**63, 3000)]
    for index in range(0, 3000, 7):  # 0 to 6 bits away from its neighbour
        flips = rng.choice(64, size=index % 7, replace=False)
        hashes[index] = hashes[index - 1] ^ sum(1 << int(bit) for bit in flips)
    values = np.array(hashes, dtype=np.uint64)
    bits = np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).astype(np.int16)
    graph = [np.flatnonzero(np.abs(bits - row).sum(axis=1) <= 4) for row in bits]
    groups = group_near_duplicates(hashes)
    assert len(set(groups)) < 3000
    for index, neighbours in enumerate(graph):
        assert {groups[n] for n in neighbours} == {groups[index]}
    # And nothing else is joined: each group is reachable from its first item.
    for name in set(groups):
        reached, todo = {name}, [name]
        while todo:
            new = set(graph[todo.pop()].tolist()) - reached
            reached |= new
            todo += new
        assert reached == {i for i, group in enumerate(groups) if group == name}


def test_ids_may_be_names_or_paths_but_not_ambiguous(
    tmp_path: Path, make_photo: Callable[..., Image.Image]
) -> None:
    for seed, name in enumerate(("a/x.png", "b/x.png", "b/y.jpg", "z.png")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        make_photo(seed).save(tmp_path / "photos" / name)
    (tmp_path / "own.csv").write_text("image_id,mean\na/X.png,4\ny.jpg,5\nz,6\nx,7\n")
    ratings = sources.read_own(tmp_path / "own.csv")
    report = build_manifest(ratings, tmp_path / "photos", tmp_path / "m.parquet")
    assert report.dropped == {"named by several files": ["x"]}
    assert sorted(pd.read_parquet(tmp_path / "m.parquet")["path"]) == [
        "a/x.png",
        "b/y.jpg",
        "z.png",
    ]


def test_a_smaller_limit_brings_photos_back(tmp_path: Path, make_set: MakeSet) -> None:
    photos, labels = make_set(tmp_path, 3)
    ratings = sources.read_own(labels)
    with pytest.raises(ValueError, match="3 too small"):
        build_manifest(ratings, photos, tmp_path / "m.parquet", min_side=65)
    assert build_manifest(ratings, photos, tmp_path / "m.parquet", min_side=64).kept == 3


def test_avas_own_lists_decide_the_split(
    shared_dir: Path, tmp_path: Path, make_photo: Callable[..., Image.Image]
) -> None:
    folder = shared_dir / "ava"
    ratings = sources.read_own(folder / "ava_ratings.csv.gz")
    test_ids = ava.official_test_ids(folder / "lists")
    chosen = pd.concat(
        [part.head(25) for _, part in ratings.groupby(ratings["image_id"].isin(test_ids))]
    )
    (tmp_path / "ava").mkdir()
    for seed, image_id in enumerate(chosen["image_id"]):
        make_photo(seed).save(tmp_path / "ava" / f"{image_id}.jpg")
    build_manifest(
        ratings, tmp_path / "ava", tmp_path / "m.parquet", test_ids=test_ids,
        styles=ava.read_styles(folder / "styles"),
    )  # fmt: skip
    frame = pd.read_parquet(tmp_path / "m.parquet")
    assert len(frame) == 50
    assert set(frame["image_id"][frame["split"] == "test"]) == set(chosen["image_id"]) & test_ids
    assert frame["split"].value_counts()["test"] == 25
    assert "train" in set(frame["split"])


def test_data_hash_depends_on_ratings_and_split(tmp_path: Path, make_set: MakeSet) -> None:
    photos, labels = make_set(tmp_path, 10)
    build_manifest(sources.read_own(labels), photos, tmp_path / "m.parquet")
    frame = pd.read_parquet(tmp_path / "m.parquet")
    original = data_sha256(frame)
    assert original == data_sha256(frame.sample(frac=1, random_state=0))
    changed = frame.copy()
    changed.loc[0, "p3"] += 0.01
    assert data_sha256(changed) != original


def test_real_ava_ratings_lists_and_styles(shared_dir: Path) -> None:
    folder = shared_dir / "ava"
    with gzip.open(folder / "ava_ratings.csv.gz") as file:
        expected = sum(1 for _ in file) - 1
    frame = sources.read_own(folder / "ava_ratings.csv.gz")
    assert len(frame) == expected == 120_069
    p = frame[sources.PROBABILITIES].to_numpy()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)
    assert 5.2 < (p @ RATINGS).mean() < 5.6
    styles = ava.read_styles(folder / "styles")
    assert len({name for names in styles.values() for name in names}) == 14
    test_ids = ava.official_test_ids(folder / "lists")
    assert len(test_ids) > 19_900
    assert not test_ids & set(ava.read_ids(folder / "lists" / "generic_ls_train.jpgl"))
    assert len(ava.read_names(folder / "tags.txt")) > 50
