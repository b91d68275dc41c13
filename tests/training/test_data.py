"""Label files, maximum entropy, AVA's lists."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nima_training.data import ava, sources
from nima_training.data.maxent import maximum_entropy, variance_limits

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
        (ava_line(3, 17, " ".join(["1e308"] * 10)), "row 2: a rating is infinite"),
        ("3 inf 1 2 3 4 5 6 7 8 9 10 1 22 1396", "row 2: 'inf' is no whole number"),
        ("3 17.5 1 2 3 4 5 6 7 8 9 10 1 22 1396", "row 2: '17.5' is no whole number"),
        ("3 9_5 1 2 3 4 5 6 7 8 9 10 1 22 1396", "row 2: '9_5' is no whole number"),
        ("3 +95 1 2 3 4 5 6 7 8 9 10 1 22 1396", r"row 2: '\+95' is no whole number"),
        ("3 ٩٥ 1 2 3 4 5 6 7 8 9 10 1 22 1396", "row 2: '٩٥' is no whole number"),
        (ava_line(3, 17, "1_0 2 3 4 5 6 7 8 9 10"), "row 2: could not convert .* '1_0'"),
        ("3 17 1 2 3 4 5 6 7 8 9 10 1 inf 1396", "row 2: 'inf' is no whole number"),
        ("\n\n" + ava_line(3, 17, "1 nan 3 4 5 6 7 8 9 10"), "row 4: a rating is NaN"),
        ("\n\n" + ava_line(3, 953619), "row 4: image 953619 appears twice"),
    ],
)
def test_malformed_ava_rows_are_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "AVA.txt"
    path.write_text(ava_line(1, 953619) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(sources.LabelError, match=rf"AVA\.txt, {reason}"):
        sources.read_ava(path)


def test_label_files_of_windows_editors(tmp_path: Path) -> None:
    """A byte order mark and CR LF; the first id of a list is none the less an id."""
    mark = b"\xef\xbb\xbf"
    (tmp_path / "AVA.txt").write_bytes(mark + f"{ava_line(1, 7)}\r\n{ava_line(2, 8)}\r\n".encode())
    assert sources.read_ava(tmp_path / "AVA.txt")["image_id"].tolist() == ["7", "8"]
    (tmp_path / "generic_test.jpgl").write_bytes(mark + b"7\r\n8\r\n")
    assert ava.official_test_ids(tmp_path) == {"7", "8"}
    (tmp_path / "tags.txt").write_bytes(mark + b"1 Abstract\r\n2\tStill Life\r\n")
    assert ava.read_names(tmp_path / "tags.txt") == {1: "Abstract", 2: "Still Life"}
    (tmp_path / "l.json").write_bytes(
        mark + json.dumps([{"image_id": 7, "label": [1] * 10}]).encode()
    )
    assert sources.read_label_json(tmp_path / "l.json")["image_id"].tolist() == ["7"]
    (tmp_path / "own.csv").write_bytes(mark + b"image_id,mean\r\n7,5\r\n")
    assert sources.read_own(tmp_path / "own.csv")["image_id"].tolist() == ["7"]


@pytest.mark.parametrize("read", [sources.read_ava, sources.read_label_json, sources.read_own])
def test_label_files_that_are_no_text(tmp_path: Path, read: Callable[[Path], pd.DataFrame]) -> None:
    path = tmp_path / "labels"
    path.write_bytes(b"image_id,mean\ncaf\xe9,5\n")
    with pytest.raises(sources.LabelError, match=r"^labels .*can't decode byte 0xe9"):
        read(path)


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("tags.txt", "1 A\nB\n", "tags.txt, row 2: needs a number and a name"),
        ("tags.txt", "1 A\n٢ B\n", "tags.txt, row 2: needs a number and a name"),
        ("tags.txt", "1 A\n2\n", "tags.txt, row 2: needs a number and a name"),
        ("train.lab", "1\n٢\n", "train.lab: '٢' of image 12 is no style"),
        ("styles.txt", "1 A\n3 B\n", r"styles.txt numbers its styles \[1, 3\]"),
        ("train.lab", "1\n3\n", "train.lab: '3' of image 12 is no style"),
        ("train.lab", "1\n", "train.jpgl has 2 rows, train.lab 1"),
        ("test.multilab", "0 1 0\n", "3 flags for image 13, not 2"),
    ],
)
def test_damaged_ava_lists_are_named(tmp_path: Path, file: str, text: str, reason: str) -> None:
    whole = {
        "tags.txt": "1 A\n", "styles.txt": "1 A\n2 B\n", "train.lab": "1\n2\n",
        "train.jpgl": "11\n12\n", "test.jpgl": "13\n", "test.multilab": "0 1\n \n",
    }  # fmt: skip
    for name, content in whole.items():
        (tmp_path / name).write_text(content)
    assert ava.read_styles(tmp_path) == {"11": ["A"], "12": ["B"], "13": ["B"]}
    (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(sources.LabelError, match=reason):
        ava.read_names(tmp_path / file) if file == "tags.txt" else ava.read_styles(tmp_path)


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


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([{"image_id": None, "label": [1] * 10}], 'row 1: needs "image_id"'),
        ([{"image_id": 1, "label": [10**400] + [1] * 9}], "row 1: .* not a number"),
        ([{"image_id": 1, "label": ["1_0"] + [1] * 9}], "row 1: .* not a number"),
        ([{"image_id": 1, "label": [True] + [1] * 9}], "row 1: .* not a number"),
    ],
)
def test_malformed_label_json(tmp_path: Path, samples: list[object], reason: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(samples))
    with pytest.raises(sources.LabelError, match=reason):
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
    # The spread published beside it is that of the mean's estimate, far below that of the ratings.
    (tmp_path / "mos_std.txt").write_text("0.13013\n0.11429\n0.09712\n")
    assert sources.read_tid2013(tmp_path).equals(frame)
    (tmp_path / "mos_with_names.txt").write_text("\n5 I01_01_1.bmp\n\n5 I01_01_1.bmp\n")
    with pytest.raises(sources.LabelError, match="row 4: image i01_01_1 appears twice"):
        sources.read_tid2013(tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_own_table(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"own{suffix}"
    frame = pd.DataFrame({"image_id": ["a", "b"], "mean": [4.2, 6.6], "std": [1.2, np.nan]})
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    p = sources.read_own(path)[sources.PROBABILITIES].to_numpy()
    np.testing.assert_allclose(p @ RATINGS, [4.2, 6.6], atol=1e-6)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_ids_and_groups_of_digits_keep_their_zeros(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"own{suffix}"
    frame = pd.DataFrame({"image_id": ["000000000139", "0285"], "mean": [4.2, 6.6]})
    frame.assign(group=["007", "7"]).to_csv(path, index=False)
    table = sources.read_own(path)
    assert table["image_id"].tolist() == ["000000000139", "0285"]
    assert table["group"].tolist() == ["007", "7"]
    frame.to_csv(path, index=False)
    assert sources.read_own(path)["image_id"].tolist() == ["000000000139", "0285"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_photo_without_a_group_is_a_group_of_its_own(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"own{suffix}"
    frame = pd.DataFrame({"image_id": ["a", "b", "c", "d"], "mean": [4.2, 6.6, 5.0, 5.1]})
    frame["group"] = ["7", None, " ", "7"]
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    assert sources.read_own(path)["group"].tolist() == ["7", "b", "c", "7"]


def test_names_that_look_like_no_value_or_a_number(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    rows = ["image_id,mean,group,tags", "NA,5,None,2019", "null,6,None,", "nan,7,,a; b;"]
    path.write_text("\n".join(rows) + "\n")
    table = sources.read_own(path)
    assert table["image_id"].tolist() == ["NA", "null", "nan"]
    assert table["group"].tolist() == ["None", "None", "nan"]
    assert table["tags"].tolist() == [["2019"], [], ["a", "b"]]
    frame = pd.DataFrame({"image_id": ["a", "b"], "mean": [5, 6], "tags": [2019, 2020]})
    frame.to_parquet(tmp_path / "own.parquet")
    assert sources.read_own(tmp_path / "own.parquet")["tags"].tolist() == [["2019"], ["2020"]]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("image_id;mean", "a column image_id, separated by commas; its header is 'image_id;mean'"),
        ("image_id\tmean", r"a column image_id, separated by commas; its header is 'image_id\\t"),
        ("Image_ID,mean", "a column image_id; it has 'Image_ID', 'mean'$"),
        ("image_id, mean", r"or mean \(and std\); it has 'image_id', ' mean'$"),
        ("image_id,r1,r2,r3,r4,r5", "; it has 'image_id', 'r1', 'r2', 'r3', 'r4', 'r5'$"),
    ],
)
def test_a_header_of_other_columns_is_shown(tmp_path: Path, header: str, reason: str) -> None:
    path = tmp_path / "own.csv"
    separator = next((s for s in ";\t" if s in header), ",")
    path.write_text(f"{header}\n{separator.join('1' for _ in header.split(separator))}\n")
    with pytest.raises(sources.LabelError, match=reason):
        sources.read_own(path)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["a,5,1", "a,6,1"], "own.csv, row 3: image a appears twice"),
        (["a,5,1", " ,6,1"], "own.csv, row 3: no image_id"),
        (["a,5,1", "b,6,many"], "own.csv, row 3: votes: could not convert"),
        (["a,5,1", "b,6,1_0"], "own.csv, row 3: votes: could not convert"),
        (["a,5,1", "b,0_6,1"], "own.csv, row 3: could not convert .* '0_6'"),
        (["a,5,1", "b,٦,1"], "own.csv, row 3: could not convert .* '٦'"),
        (["", "a,5,1", " ", "b,11,1"], "own.csv, row 5: mean 11.0 is not in"),
        (["a,5,1", "", ",6,1"], "own.csv, row 4: no image_id"),
        (["", "a,5,1", "", '"b\nc",5,1', "a,6,1"], "own.csv, row 6: image a appears twice"),
        (["a,5,1", "b,6,1,9"], "own.csv cannot be read as CSV: .*line 3"),
        (["a,5,1,9", "b,6,1,9"], "own.csv: its rows have more fields than its header"),
        (["a,5,1,", "b,6,1,"], "own.csv: its rows have more fields than its header"),
    ],
)
def test_malformed_rows_of_an_own_table(tmp_path: Path, rows: list[str], reason: str) -> None:
    path = tmp_path / "own.csv"
    path.write_text("\n".join(["image_id,mean,votes", *rows]) + "\n", encoding="utf-8")
    with pytest.raises(sources.LabelError, match=reason):
        sources.read_own(path)


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
def test_blank_lines_count_in_a_compressed_table_and_before_its_header(
    tmp_path: Path, suffix: str
) -> None:
    text = b"\xef\xbb\xbf\r\n\r\nimage_id,mean\r\na,5\r\n\r\nb,11\r\n"
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    (path := tmp_path / f"own.csv{suffix}").write_bytes(pack(text))
    with pytest.raises(sources.LabelError, match=r"row 6: mean 11\.0 is not in"):
        sources.read_own(path)


def test_a_table_out_of_a_pipe_is_read_once(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "own.csv")
    writer = threading.Thread(target=pipe.write_text, args=["image_id,mean\n\na,5\n"], daemon=True)
    writer.start()
    found: list[pd.DataFrame] = []
    reader = threading.Thread(target=lambda: found.append(sources.read_own(pipe)), daemon=True)
    reader.start()
    reader.join(20)
    assert [table["image_id"].tolist() for table in found] == [["a"]]


@pytest.mark.parametrize("name", ["own.csv.gz", "own.csv.bz2", "own.csv.xz", "own.csv.zip"])
def test_compressed_tables_that_are_cut_short(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    frame = pd.DataFrame({"image_id": [f"{i * i % 9973}" for i in range(500)], "mean": 5.0})
    frame.to_csv(path, index=False)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"text", b""):
        path.write_bytes(damaged)
        with pytest.raises(sources.LabelError, match=rf"{name} cannot be read as CSV: \S"):
            sources.read_own(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        sources.read_own(path)


def test_nan_in_own_table_is_refused_with_its_row(tmp_path: Path, make_set: MakeSet) -> None:
    _, labels = make_set(tmp_path, 4)
    lines = labels.read_text().splitlines()
    lines[3] = lines[3].rsplit(",", 1)[0] + ","
    labels.write_text("\n".join(lines) + "\n")
    with pytest.raises(sources.LabelError, match=r"labels\.csv, row 4: a rating is NaN"):
        sources.read_own(labels)


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
