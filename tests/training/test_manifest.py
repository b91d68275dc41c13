"""`nima prepare`: what it drops, how it splits, how labels and lists find their photos."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, features

from nima_training.cli.prepare import app as prepare
from nima_training.data import ava, sources
from nima_training.data.checks import PhotoNames
from nima_training.data.manifest import build_manifest, data_sha256
from nima_training.distill.photos import list_photos
from nima_training.split import MAX_HAMMING, group_near_duplicates, unit_hash

MakeSet = Callable[[Path, int], tuple[Path, Path]]


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


def test_photos_with_equal_hashes_by_chance_are_split(
    tmp_path: Path, make_photo: Callable[..., Image.Image]
) -> None:
    # Every pixel as far from its neighbour, at 25 levels: one hash, and no two the same picture.
    photos = tmp_path / "photos"
    photos.mkdir()
    dark = np.asarray(make_photo(2).convert("L").resize((9, 8), Image.Resampling.BILINEAR)) // 4
    for level in range(25):
        grey = Image.fromarray((dark + 7 * level).astype(np.uint8))
        grey.resize((90, 80), Image.Resampling.NEAREST).save(photos / f"{level}.png")
    (tmp_path / "own.csv").write_text("image_id,mean\n" + "".join(f"{i},5\n" for i in range(25)))
    report = build_manifest(sources.read_own(tmp_path / "own.csv"), photos, tmp_path / "m.parquet")
    assert report.split == {"train": 20, "val": 3, "test": 2}
    hashes = [int(text, 16) for text in pd.read_parquet(tmp_path / "m.parquet")["dhash"]]
    assert len(set(group_near_duplicates(hashes))) == 1


@pytest.mark.parametrize("official", [None, {"photo000", "photo001"}])
def test_a_split_is_the_same_whatever_the_order_of_the_labels_and_the_folder(
    tmp_path: Path,
    make_set: MakeSet,
    make_photo: Callable[..., Image.Image],
    official: set[str] | None,
) -> None:
    photos, labels = make_set(tmp_path, 60)
    for index in range(0, 40, 2):  # copies, and files of equal bytes
        make_photo(index).resize((144, 128)).save(photos / f"photo{index + 1:03d}.png")
    for index in range(40, 50, 2):
        shutil.copy(photos / f"photo{index:03d}.png", photos / f"photo{index + 1:03d}.png")
    ratings = sources.read_own(labels)
    moved = Path(shutil.copytree(photos, tmp_path / "elsewhere" / "p"))
    splits = []
    for order, folder in ((None, photos), (1, photos), (2, moved)):
        shuffled = ratings if order is None else ratings.sample(frac=1, random_state=order)
        build_manifest(shuffled, folder, tmp_path / "m.parquet", test_ids=official)
        splits.append(dict(pd.read_parquet(tmp_path / "m.parquet")[["image_id", "split"]].values))
    assert set(splits[0].values()) == {"train", "val", "test"}
    assert splits[0] == splits[1] == splits[2]


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


def test_the_nearest_name_of_a_photo_wins(
    tmp_path: Path, make_photo: Callable[..., Image.Image]
) -> None:
    photos = tmp_path / "photos"
    for seed, name in enumerate(("a.png", "s/a.png", "s/b.png", "b.png.jpg", "c.png", "C.png")):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        make_photo(seed).save(photos / name)
    names = PhotoNames(photos)

    def found(image_id: str) -> list[str]:
        return [path.relative_to(photos).as_posix() for path in names.find(image_id)]

    assert found("a.png") == ["a.png"]  # a path, and the file name of another
    assert found("b.png") == ["s/b.png"]  # a file name, and another without its suffix
    assert found("b.PNG.jpg") == ["b.png.jpg"]
    assert found("C.png") == ["C.png"]
    assert found("a") == ["a.png", "s/a.png"]
    assert found("c.Png") == ["C.png", "c.png"]
    assert found("d") == []


def test_names_of_another_system(tmp_path: Path, make_photo: Callable[..., Image.Image]) -> None:
    """Archives of macOS hold e and an accent, most editors write one letter."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed, name in enumerate(("cafe\u0301.png", "\u30d0.png", "n\u0303.png", "\u00f1.png")):
        make_photo(seed).save(photos / name)
    names = PhotoNames(photos)
    assert names.find("caf\u00e9.png") == [photos / "cafe\u0301.png"]
    assert names.find("./Caf\u00e9") == [photos / "cafe\u0301.png"]
    assert names.find("\u30cf\u3099.png") == [photos / "\u30d0.png"]
    if len(list(photos.iterdir())) == 4:  # on macOS the last two are one
        for name in ("n\u0303.png", "\u00f1.png"):
            assert names.find(name) == [photos / name]


def test_where_no_photo_is_found_one_is_named(tmp_path: Path, make_set: MakeSet) -> None:
    photos, _ = make_set(tmp_path, 1)
    (tmp_path / "own.csv").write_text("image_id,mean\nC:\\a\\photo000.png,4\n")
    ratings = sources.read_own(tmp_path / "own.csv")
    with pytest.raises(ValueError, match=r"e\.g\. not 'C:.*photo000\.png'; 1 labelled"):
        build_manifest(ratings, photos, tmp_path / "m.parquet")


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_avif_is_found_wherever_photos_are(
    tmp_path: Path, make_photo: Callable[..., Image.Image]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    make_photo(1).save(photos / "x.avif")
    (photos / "._x.avif").write_bytes(b"what macOS leaves beside a file")
    (tmp_path / "own.csv").write_text("image_id,mean\nx,4\n")
    report = build_manifest(sources.read_own(tmp_path / "own.csv"), photos, tmp_path / "m.parquet")
    assert (report.kept, report.dropped) == (1, {})
    assert list_photos(photos) == [photos / "x.avif"]


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


def test_nothing_related_to_an_official_test_photo_is_trained_on(
    tmp_path: Path, make_photo: Callable[..., Image.Image]
) -> None:
    photos = tmp_path / "ava"
    photos.mkdir()
    for seed in range(60):
        make_photo(seed).save(photos / f"{seed}.png")
    make_photo(0).resize((144, 128)).save(photos / "copy.jpg", quality=60)
    shutil.copy(photos / "1.png", photos / "same.png")  # its group knows it, its file goes
    # An equal hash by chance: every pixel as far from its neighbour, at another level.
    dark = np.asarray(make_photo(2).convert("L").resize((9, 8), Image.Resampling.BILINEAR))
    for name, level in (("2", 0), ("dark", 20)):
        grey = Image.fromarray((dark // 2 + 5 * level).astype(np.uint8))
        grey.resize((90, 80), Image.Resampling.NEAREST).save(photos / f"{name}.png")
    ids = [*map(str, range(60)), "copy", "same", "dark"]
    ratings = sources.table(
        ids, np.full((63, 10), 0.1), np.full(63, np.nan),
        [{"3": "s", "4": "s", "same": "t", "5": "t"}.get(i, i) for i in ids],
    )  # fmt: skip
    test_ids = {"0", "1", "2", "3"}
    for seed in range(3):
        report = build_manifest(
            ratings, photos, tmp_path / "m.parquet", test_ids=test_ids, seed=seed
        )
        frame = pd.read_parquet(tmp_path / "m.parquet").set_index("image_id")
        assert set(frame.index[frame["split"] == "test"]) == test_ids
        assert report.dropped == {
            "duplicate": ["same"],
            "related to a test photo": ["4", "5", "copy"],
        }
        assert report.split == {"train": 52, "val": 3, "test": 4}
        assert "3 related to a test photo" in report.summary()
        by_chance = int(frame["dhash"]["2"], 16) ^ int(frame["dhash"]["dark"], 16)
        assert by_chance.bit_count() <= MAX_HAMMING


def test_checks_of_a_version_without_thumbnails_are_made_anew(
    tmp_path: Path, make_set: MakeSet
) -> None:
    photos, labels = make_set(tmp_path, 4)
    ratings, checks = sources.read_own(labels), tmp_path / "m.checks.jsonl"
    build_manifest(ratings, photos, tmp_path / "m.parquet")
    old = [json.loads(line) for line in checks.read_text().splitlines()]
    for check in old:
        assert len(check.pop("thumbnail")) == 144
    checks.write_text("".join(json.dumps(check) + "\n" for check in old))
    report = build_manifest(ratings, photos, tmp_path / "m.parquet", test_ids={"photo001"})
    assert report.split["test"] == 1
    assert len(checks.read_text().splitlines()) == 8


def test_val_takes_whole_groups_beside_an_official_test_split(
    tmp_path: Path, make_set: MakeSet
) -> None:
    photos, labels = make_set(tmp_path, 60)
    ratings = sources.read_own(labels)
    ratings["group"] = [f"scene{i // 5}" for i in range(60)]
    for seed in range(4):
        report = build_manifest(
            ratings, photos, tmp_path / "m.parquet", test_ids={"photo000"}, seed=seed
        )
        assert report.dropped["related to a test photo"] == [f"photo00{i}" for i in range(1, 5)]
        assert report.split == {"train": 50, "val": 5, "test": 1}
        frame = pd.read_parquet(tmp_path / "m.parquet")
        assert (frame.groupby("group")["split"].nunique() == 1).all()


def test_large_sets_are_dealt_beside_an_official_split_by_their_ids(
    tmp_path: Path, make_photo: Callable[..., Image.Image]
) -> None:
    photos = tmp_path / "ava"
    photos.mkdir()
    for seed in range(240):
        make_photo(seed).save(photos / f"{seed}.png")
    ids = [str(seed) for seed in range(240)]
    ratings = sources.table(ids, np.full((240, 10), 0.1), np.full(240, np.nan))
    build_manifest(ratings, photos, tmp_path / "m.parquet", test_ids=set(ids[:20]))
    frame = pd.read_parquet(tmp_path / "m.parquet")
    assert frame["split"].tolist() == ["test"] * 20 + [
        "val" if unit_hash(image_id, 0) < 0.05 else "train" for image_id in ids[20:]
    ]


def test_parts_that_are_empty_or_small_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make_set: MakeSet
) -> None:
    for count, expected in (
        (2, ["train: 1 photos of 1 groups", "val: 1 photos of 1 groups", "test has no photo"]),
        (40, ["val: 4 photos of 4 groups", "test: 4 photos of 4 groups"]),
        (120, []),
    ):
        photos, labels = make_set(tmp_path / str(count), count)
        out = tmp_path / "m.parquet"
        prepare([str(labels), "--photos", str(photos), "--out", str(out)], standalone_mode=False)
        told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
        assert len(told) == len(expected)
        for line, start in zip(told, expected, strict=True):
            assert line.startswith(f"nima prepare: warning: {start}")


@pytest.mark.parametrize("written", ["{}", "{}.jpg", "part/{}.jpg"])
def test_official_ids_fit_files_however_the_labels_name_them(
    tmp_path: Path, make_photo: Callable[..., Image.Image], written: str
) -> None:
    (tmp_path / "ava/part").mkdir(parents=True)
    for seed, image_id in enumerate(("11", "12", "13", "14")):
        make_photo(seed).save(tmp_path / f"ava/part/{image_id}.jpg")
    shutil.copy(tmp_path / "ava/part/12.jpg", tmp_path / "ava/part/15.jpg")
    rows = [f"{written.format(image_id)},5" for image_id in ("11", "15", "12", "13", "14")]
    (tmp_path / "own.csv").write_text("image_id,mean\n" + "\n".join(rows) + "\n")
    ratings, out = sources.read_own(tmp_path / "own.csv"), tmp_path / "m.parquet"
    build_manifest(
        ratings, tmp_path / "ava", out, test_ids={"12", "13", "99"}, styles={"13": ["Macro"]}
    )
    frame = pd.read_parquet(out)
    frame.index = [Path(path).stem for path in frame["path"]]
    assert sorted(frame.index) == ["11", "12", "13", "14"]  # of the copies, that of the test split
    assert sorted(frame.index[frame["split"] == "test"]) == ["12", "13"]
    assert {name: list(value) for name, value in frame["styles"].items() if len(value)} == {
        "13": ["Macro"]
    }
    with pytest.raises(ValueError, match=r"none of the 4 usable photos .* official test"):
        build_manifest(ratings, tmp_path / "ava", out, test_ids={"99"})


def test_linked_photos_and_links_that_lead_nowhere(tmp_path: Path, make_set: MakeSet) -> None:
    stored, labels = make_set(tmp_path / "elsewhere", 12)
    photos, out = tmp_path / "photos", tmp_path / "m.parquet"
    photos.mkdir()
    for path in stored.iterdir():
        (photos / path.name).symlink_to(path)
    (stored / "photo003.png").unlink()
    ratings = sources.read_own(labels)
    for _ in range(2):  # the second run reads the checks of the first
        report = build_manifest(ratings, photos, out)
        assert report.dropped == {"unreadable": ["photo003"]}
        assert pd.read_parquet(out)["path"][0] == "photo000.png"


def test_what_only_has_the_name_of_a_photo(tmp_path: Path, make_set: MakeSet) -> None:
    photos, labels = make_set(tmp_path, 12)
    (photos / "photo003.png").unlink()
    (photos / "photo003.png").symlink_to(os.devnull)  # no file, as a pipe, but does not block
    (photos / "photo004.png").unlink()
    (photos / "photo004.png").mkdir()
    os.mkfifo(photos / "pipe.jpg")
    (photos / "nothing.jpg").symlink_to(photos / "gone.jpg")
    report = build_manifest(sources.read_own(labels), photos, tmp_path / "m.parquet")
    assert report.dropped == {"unreadable": ["photo003", "photo004"]}
    assert len(list_photos(photos)) == 10


def test_damaged_checks_are_made_anew(tmp_path: Path, make_set: MakeSet) -> None:
    photos, labels = make_set(tmp_path, 12)
    ratings, out = sources.read_own(labels), tmp_path / "m.parquet"
    build_manifest(ratings, photos, out)
    whole, checks = out.read_bytes(), out.with_suffix(".checks.jsonl")
    checks.write_bytes(checks.read_bytes()[:-99] + b"\0\xff\xfe")
    build_manifest(ratings, photos, out)
    assert out.read_bytes() == whole


def test_data_hash_depends_on_ratings_split_and_order(tmp_path: Path, make_set: MakeSet) -> None:
    photos, labels = make_set(tmp_path, 10)
    build_manifest(sources.read_own(labels), photos, tmp_path / "m.parquet")
    frame = pd.read_parquet(tmp_path / "m.parquet")
    original = data_sha256(frame)
    assert original == data_sha256(pd.read_parquet(tmp_path / "m.parquet"))
    assert original != data_sha256(frame.sample(frac=1, random_state=0))
    changed = frame.copy()
    changed.loc[0, "p3"] += 0.01
    assert data_sha256(changed) != original
    by_hand = [
        table[["image_id", "path", "split", *sources.PROBABILITIES]] for table in (frame, changed)
    ]
    assert len({original, *map(data_sha256, by_hand)}) == 3


def test_an_output_that_is_a_folder_is_told_before_photos_are_read(
    make_set: Callable[[Path, int], tuple[Path, Path]], tmp_path: Path
) -> None:
    photos, labels = make_set(tmp_path, 2)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"is a folder: name a file in it"):
        build_manifest(sources.read_own(labels), photos, photos)
    assert sorted(tmp_path.iterdir()) == before


def test_labels_are_not_replaced_by_the_manifest(
    make_set: Callable[[Path, int], tuple[Path, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos, labels = make_set(tmp_path, 2)
    before = labels.read_bytes()
    link = tmp_path / "link.csv"
    link.symlink_to(labels)
    for out in (labels, link):
        with pytest.raises(SystemExit) as stopped:
            prepare([str(labels), "--photos", str(photos), "--out", str(out)])
        assert stopped.value.code == 2
        assert f"{out} is the label file: choose another --out" in capsys.readouterr().err
    assert labels.read_bytes() == before


def test_a_folder_whose_name_is_not_utf8_costs_its_own_photos_only(
    make_set: Callable[[Path, int], tuple[Path, Path]], tmp_path: Path
) -> None:
    photos, labels = make_set(tmp_path, 4)
    folder = Path(os.fsdecode(os.fsencode(photos) + b"/caf\xe9"))
    folder.mkdir()
    (photos / "photo001.png").rename(folder / "photo001.png")
    out = tmp_path / "m.parquet"
    report = build_manifest(sources.read_own(labels), photos, out)
    assert report.dropped == {"below a folder whose name is not UTF-8": ["photo001"]}
    assert len(pd.read_parquet(out)) == 3
