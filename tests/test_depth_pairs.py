import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import kdepth
from depth_pairs import evaluate_models, predict_at, read_depth_pairs, read_true_depth, sample_pairs

METRES = np.array([[0.0, 0.5, 1.0, 2.5], [10.0, 12.0, 0.0, 2.0]], np.float32)


def write_png(path: Path, metres: NDArray[np.float32], scale: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.round(metres * scale).astype(np.uint16))
    return path


def write_rgb(path: Path, colour: tuple[int, int, int]) -> Path:
    """A picture of 8 x 4 pixels, of one RGB colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((4, 8, 3), colour[::-1], np.uint8))
    return path


@pytest.mark.parametrize(
    ("scale", "stored"), [("kitti", 256), ("tum", 5000), ("nyu", 1000), ("mm", 1000), (500, 500), ("2e2", 200)]
)
def test_whole_numbers_are_divided_by_the_scale(scale: str | float, stored: float, tmp_path: Path) -> None:
    path = write_png(tmp_path / "d.png", METRES, stored)
    np.testing.assert_allclose(read_true_depth(path, depth_scale=scale), METRES, rtol=1e-6)
    np.save(tmp_path / "d.npy", np.round(METRES * stored).astype(np.int32))
    np.testing.assert_allclose(read_true_depth(tmp_path / "d.npy", depth_scale=scale), METRES, rtol=1e-6)


def test_floats_are_metres(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", METRES[None, :, :, None].astype(np.float64))
    np.savez(tmp_path / "one.npz", METRES)
    np.savez(tmp_path / "named.npz", rgb=np.zeros(3), depth=METRES)
    for name in ("d.npy", "one.npz", "named.npz"):
        np.testing.assert_array_equal(read_true_depth(tmp_path / name, depth_scale="kitti"), METRES)
    assert cv2.imwrite(str(tmp_path / "d.tiff"), METRES)
    np.testing.assert_array_equal(read_true_depth(tmp_path / "d.tiff"), METRES)


def test_what_is_no_depth_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.zeros(3))
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    np.save(tmp_path / "pickle.npy", np.array([[{}]]), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=METRES, b=METRES)
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    (tmp_path / "bad.npz").write_bytes(b"PK")
    write_rgb(tmp_path / "rgb.png", (1, 2, 3))
    for name, says in (
        ("flat.npy", r"flat.npy must hold numbers of the shape \(H, W\), not float64 \(3,\)"),
        ("text.npy", "must hold numbers"),
        ("pickle.npy", "pickle.npy can't be read"),
        ("bad.npz", "bad.npz can't be read"),
        ("two.npz", "several arrays, and none is called 'depth'"),
        ("none.npy", "none.npy can't be read"),
        ("none.png", "none.png is not there"),
        ("bad.png", "no picture of 16 bits"),
        ("rgb.png", "no picture of 16 bits"),
    ):
        with pytest.raises(ValueError, match=says):
            read_true_depth(tmp_path / name)
    for scale in ("feet", 0, -1, "nan"):
        with pytest.raises(ValueError, match=f"depth_scale={scale!r} must be"):
            read_true_depth(tmp_path / "flat.npy", depth_scale=scale)


def test_a_folder_holds_pairs_by_name(tmp_path: Path) -> None:
    for source, names in (("kitchen", ("b", "a")), ("deep/hall", ("c",))):
        for name in names:
            write_rgb(tmp_path / source / "rgb" / f"{name}.png", (250, 20, 10))
            write_png(tmp_path / source / "depth" / f"{name}.png", METRES, 5000)
    pairs = list(read_depth_pairs(tmp_path, depth_scale="tum"))
    assert [(pair.source, pair.name) for pair in pairs] == [("hall", "c"), ("kitchen", "a"), ("kitchen", "b")]
    assert pairs[0].rgb[0, 0].tolist() == [250, 20, 10]
    assert pairs[0].true_inverse_depth.tolist() == [[0, 2, 1, pytest.approx(0.4)], pytest.approx([0.1, 1 / 12, 0, 0.5])]
    (tmp_path / "kitchen" / "depth" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"rgb.a\.png has no depth of its name"):
        list(read_depth_pairs(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pairs"):
        list(read_depth_pairs(tmp_path / "empty"))


def test_a_csv_names_files_and_what_is_known_of_them(tmp_path: Path) -> None:
    write_rgb(tmp_path / "a.png", (1, 2, 3))
    write_png(tmp_path / "a_depth.png", METRES, 256)
    np.save(tmp_path / "b.npy", np.where(METRES == 12, np.nan, METRES))
    table = tmp_path / "pairs.csv"
    table.write_text(
        "rgb,depth,source,depth_scale,focal_length_px\na.png,a_depth.png,car,kitti,721.5\na.png,b.npy,,,\n"
    )
    first, second = read_depth_pairs(table)
    assert (first.source, first.focal_length_px, second.source, second.focal_length_px) == ("car", 721.5, "pairs", None)
    assert np.count_nonzero(first.true_inverse_depth) == 6
    assert second.true_inverse_depth[1].tolist() == pytest.approx([0.1, 0, 0, 0.5])
    table.write_text("rgb,depth\nmissing.png,b.npy\n")
    with pytest.raises(ValueError, match=r"missing\.png is missing"):
        list(read_depth_pairs(table))
    table.write_text("picture,depth\na.png,b.npy\n")
    with pytest.raises(ValueError, match="no columns 'rgb' and 'depth'"):
        list(read_depth_pairs(table))


def test_models_are_scored_on_the_rendered_samples() -> None:
    pairs = list(sample_pairs(step=60))
    assert [pair.name.split()[1] for pair in pairs[:2]] == ["0", "60"]
    table = evaluate_models(pairs, ["small"])
    assert table.num_rows == len(pairs) == 12
    assert set(table["kind"].to_pylist()) == {"relative"}
    assert table["model"][0].as_py().startswith("small@")
    assert json.loads(json.dumps(table.to_pylist()[0]))["source"] == "rendered samples"
    frame = table.to_pandas()
    assert frame["order"].mean() > 0.85
    assert frame["delta1"].mean() > 0.5
    model = kdepth.load_model("small")
    found = kdepth.evaluate_depth(predict_at(model, pairs[3]), pairs[3].true_inverse_depth, kind="relative")
    row = table.to_pylist()[3]
    assert (row["name"], row["abs_rel"], row["boundary_f1"]) == (pairs[3].name, found.abs_rel, found.boundary_f1)
