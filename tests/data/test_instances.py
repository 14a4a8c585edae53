"""Boxes and masks of objects: COCO, Pascal VOC and YOLO; faults; jittered crops; copy-paste."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastmim.data.annotations.coco import read_coco
from fastmim.data.annotations.find_instances import open_instances
from fastmim.data.annotations.instances import draw_mask
from fastmim.data.annotations.run_lengths import check_encoding, run_lengths
from fastmim.data.decode.pixels import UnreadableImage
from fastmim.data.decode.resize import Box
from fastmim.data.loading.instance_samples import InstanceSamples, boxes_of
from fastmim.data.loading.whole_images import Geometry
from fastmim.data.settings import JitterConfig
from fastmim.data.transforms.placement import Placement, crop, whole
from fastmim.errors import UsageError

SIZE = (40, 60)  # H, W
RED, BLUE = (250, 0, 0), (0, 0, 250)
PLAIN = JitterConfig(scale=(1.0, 1.0), flip=False, distort=False, mean=(0.5,) * 3, std=(0.5,) * 3)


def picture(boxes: list[tuple[int, int, int, int]], colours: list[tuple[int, int, int]]) -> Image.Image:
    pixels = np.full((*SIZE, 3), 128, np.uint8)
    for (left, top, right, bottom), colour in zip(boxes, colours, strict=True):
        pixels[top:bottom, left:right] = colour
    return Image.fromarray(pixels)


def coco_rows(box: tuple[int, int, int, int], polygon: bool = True) -> dict[str, Any]:
    left, top, right, bottom = box
    row: dict[str, Any] = {"bbox": [left, top, right - left, bottom - top], "iscrowd": 0}
    row["area"] = (right - left) * (bottom - top)
    if polygon:
        row["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
    return row


def write_coco(folder: Path, split: str = "train2017", count: int = 3, polygon: bool = True) -> Path:
    """A red square (category 7) and a blue one (category 3) in each image."""
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    content: dict[str, Any] = {"categories": [{"id": 7, "name": "red"}, {"id": 3, "name": "blue"}]}
    content |= {"images": [], "annotations": []}
    for number in range(count):
        boxes = [(5 + number, 6, 20, 18), (30, 20 - number, 50, 38)]
        picture(boxes, [RED, BLUE]).save(folder / split / f"{number}.png")
        content["images"].append(
            {"id": 100 + number, "file_name": f"{number}.png", "height": 40, "width": 60}
        )
        for box, category in zip(boxes, (7, 3), strict=True):
            row = coco_rows(box, polygon) | {"image_id": 100 + number, "category_id": category}
            content["annotations"].append(row | {"id": len(content["annotations"]) + 1})
    file = folder / "annotations" / f"instances_{split}.json"
    file.write_text(json.dumps(content))
    return file


def change(file: Path, edit) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


# COCO.


def test_cocos_layout(tmp_path):
    write_coco(tmp_path)
    write_coco(tmp_path, "val2017", 2)
    training, validation = open_instances(str(tmp_path), (), (), 0.2, 0)
    assert (len(training), len(validation)) == (3, 2)
    assert training.notes[0] == (
        "COCO's layout: trained on instances_train2017.json, validated on instances_val2017.json"
    )
    assert training.classes == ("blue", "red")  # by id, with gaps
    assert training.category_ids == (3, 7)
    assert training.image_ids == (100, 101, 102)
    assert training.has_masks
    objects = training.objects[0]
    assert objects.boxes.tolist() == [[5, 6, 20, 18], [30, 20, 50, 38]]
    assert objects.labels.tolist() == [1, 0]


def test_one_file_is_split(tmp_path):
    write_coco(tmp_path, count=10)
    training, validation = open_instances(str(tmp_path), (), (), 0.3, 0)
    assert (len(training), len(validation)) == (7, 3)
    assert not set(training.indices) & set(validation.indices)


def test_any_pair_of_files_and_folders(tmp_path):
    write_coco(tmp_path, "one").rename(tmp_path / "a.json")
    write_coco(tmp_path, "two").rename(tmp_path / "b.json")
    training, _ = open_instances(str(tmp_path), ("a.json", "b.json"), ("one", "two"), 0.2, 0)
    assert training.source.name(0) == "0.png"
    with pytest.raises(UsageError, match=r"annotations: .*c.json does not exist"):
        open_instances(str(tmp_path), ("c.json",), ("one",), 0.2, 0)
    with pytest.raises(UsageError, match=r"annotations = a.json, b.json: one or two files"):
        open_instances(str(tmp_path), ("a.json", "b.json"), (), 0.2, 0)


def test_faults_are_handled_counted_and_told(tmp_path):
    file = write_coco(tmp_path)

    def spoil(content):
        rows = content["annotations"]
        rows[0]["bbox"] = [50, 30, 30, 5]  # reaches out of the image
        rows[1]["bbox"] = [3, 3, 0.2, 10]  # degenerate
        rows[2]["iscrowd"] = 1
        rows[2]["segmentation"] = {"size": [40, 60], "counts": [100, 20, 2280]}
        rows[3]["category_id"] = 99
        rows[4]["image_id"] = 999
        content["images"].append({"id": 5, "file_name": "missing.png", "height": 40, "width": 60})

    change(file, spoil)
    data = read_coco(file, tmp_path / "train2017")
    said = " | ".join(data.notes)
    assert "1 image without a file left out, such as missing.png" in said
    assert "1 object of unknown categories left out" in said
    assert "1 object of images that are left out or not listed left out" in said
    assert "1 boxes clipped to their image (such as in 0.png)" in said
    assert "1 boxes of less than a pixel left out (such as in 0.png)" in said
    assert data.objects[0].boxes.tolist() == [[50, 30, 60, 35]]
    assert data.objects[1].crowd.tolist() == [True]
    assert len(data) == 3  # images without objects count
    assert data.object_count == 2


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99), st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_run_lengths_are_those_of_the_library(height, width, seed, share):
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    encoded = coco_mask.encode(np.asfortranarray(mask))
    check_encoding({"size": [height, width], "counts": encoded["counts"]}, (height, width))
    runs = run_lengths(encoded["counts"])
    columns = np.repeat(np.arange(len(runs)) % 2, runs)
    np.testing.assert_array_equal(columns.reshape(width, height).T, mask)
    assert run_lengths(encoded["counts"].decode()).tolist() == run_lengths(runs.tolist()).tolist()


@given(st.text(max_size=20) | st.text("0123456789PQabcdo", max_size=20))
def test_a_text_is_accepted_only_if_its_runs_fill_the_mask(text):
    try:
        check_encoding({"size": [6, 5], "counts": text}, (6, 5))
    except ValueError:
        return
    assert coco_mask.decode({"size": [6, 5], "counts": text.encode()}).shape == (6, 5)


WRONG_ENCODINGS = [
    {"size": [40, 60], "counts": [100, 20]},  # too few pixels
    {"size": [40, 60], "counts": [2400, 2400]},
    {"size": [40, 60], "counts": [-100, 2500]},
    {"size": [40, 60], "counts": ["100", 2300]},
    {"size": [40, 60], "counts": 7},
    {"size": [40, 60], "counts": "\n\nx"},
    {"size": [40, 60], "counts": "oooooooooooooooooooooooooo"},
    {"size": [60, 40], "counts": [2400]},  # of another image
    {"size": [10**9, 10**9], "counts": [10**18]},
    {"size": [2400], "counts": [2400]},
    {"size": "40x60", "counts": [2400]},
]


@pytest.mark.parametrize("encoding", WRONG_ENCODINGS)
def test_a_wrong_mask_costs_the_mask_and_is_told(encoding, tmp_path):
    file = write_coco(tmp_path)
    change(file, lambda content: content["annotations"][0].update(segmentation=encoding))
    data = read_coco(file, tmp_path / "train2017")
    assert data.objects[0].segmentations[0] is None
    assert len(data.objects[0].boxes) == 2
    told = " ".join(data.notes)
    assert "1 masks whose run-length encoding does not fit left out (such as in 0.png)" in told


def test_a_mask_of_another_size_costs_the_image():
    with pytest.raises(UnreadableImage, match="a mask of 40x60 pixels does not fit the image of 30x30"):
        draw_mask({"size": [40, 60], "counts": [2400]}, (30, 30), (8, 8), whole((30, 30), 0.2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is not COCO's JSON: it holds a list"),
        ("{}", "images is missing, or not a list"),
        ('{"images": [{}], "annotations": [], "categories": []}', "file_name = None is not the name"),
        ("{", "JSON"),
    ],
)
def test_other_json_is_one_line(tmp_path, content, message):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(content)
    with pytest.raises(UsageError, match=message) as error:
        open_instances(str(tmp_path), (), (), 0.2, 0)
    assert "\n" not in str(error.value)


# Pascal VOC and YOLO.


def write_voc(folder: Path) -> None:
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        for number in range(2):
            picture([(5, 6, 20, 18)], [RED]).save(folder / split / f"{number}.png")
            (folder / split / f"{number}.xml").write_text(
                "<annotation><size><width>60</width><height>40</height></size>"
                "<object><name>red</name><bndbox><xmin>6</xmin><ymin>7</ymin><xmax>20</xmax><ymax>18</ymax>"
                "</bndbox></object><object><name>blue</name><difficult>1</difficult><bndbox><xmin>31</xmin>"
                "<ymin>21</ymin><xmax>50</xmax><ymax>38</ymax></bndbox></object></annotation>"
            )


def test_pascal_voc(tmp_path):
    """Its corners are counted from 1, and inclusive."""
    write_voc(tmp_path)
    training, validation = open_instances(str(tmp_path), (), (), 0.2, 0)
    assert training.notes[0] == "Pascal VOC's XML: trained on train, validated on val"
    assert (len(training), len(validation)) == (2, 2)
    assert training.classes == ("blue", "red")
    assert training.objects[0].boxes.tolist() == [[5, 6, 20, 18], [30, 20, 50, 38]]
    assert training.objects[0].crowd.tolist() == [False, True]
    assert not training.has_masks


def test_voc_with_entities_is_refused(tmp_path):
    write_voc(tmp_path)
    bomb = '<!DOCTYPE a [<!ENTITY b "c">]><annotation/>'
    (tmp_path / "train" / "0.xml").write_text(bomb)
    training, _ = open_instances(str(tmp_path), (), (), 0.2, 0)
    assert len(training) == 1
    assert any("declares a document type" in note for note in training.notes)


def write_yolo(folder: Path, polygon: bool = False) -> None:
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for number in range(2):
            picture([(6, 10, 18, 20)], [RED]).save(folder / "images" / split / f"{number}.png")
        numbers = "0.1 0.25 0.3 0.25 0.3 0.5 0.1 0.5" if polygon else "0.2 0.375 0.2 0.25"
        (folder / "labels" / split / "0.txt").write_text(f"1 {numbers}\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames:\n  0: blue\n  1: red\n")


@pytest.mark.parametrize("polygon", [False, True])
def test_yolo(tmp_path, polygon):
    write_yolo(tmp_path, polygon)
    training, validation = open_instances(str(tmp_path), (), (), 0.2, 0)
    assert training.notes[0] == "YOLO's layout: trained on train, validated on val"
    assert "1 image without a text file: taken to have no objects" in training.notes
    assert (len(training), len(validation)) == (2, 2)
    assert training.classes == ("blue", "red")
    assert training.objects[0].boxes.tolist() == [[pytest.approx(v) for v in (6, 10, 18, 20)]]
    assert training.objects[0].labels.tolist() == [1]
    assert training.has_masks == polygon


def test_a_wrong_line_of_yolo_is_named(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "0.txt").write_text("1 0.2 0.375 0.2 0.25\n2 0.1 0.1 0.1 0.1\n")
    with pytest.raises(UsageError, match=r"0.txt, line 2: '2' is none of the 2 classes"):
        open_instances(str(tmp_path), (), (), 0.2, 0)


def test_a_folder_without_annotations(tmp_path):
    picture([], []).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="has no annotations; give a folder in the layout of COCO"):
        open_instances(str(tmp_path), (), (), 0.2, 0)


# Masks and crops.


def test_a_mask_is_drawn_where_its_box_is():
    """Polygons against an encoding of the same mask, moved, scaled, mirrored and cut."""
    polygon = [np.array([[5, 6], [20, 6], [20, 18], [5, 18]], np.float32)]
    full = np.zeros(SIZE, np.uint8)
    full[6:18, 5:20] = 1
    encoded = coco_mask.encode(np.asfortranarray(full))
    for placement in (
        whole(SIZE, 1.0),
        whole(SIZE, 2.0),
        crop(SIZE, 2.0, (40, 60), (0.3, 0.2), flip=False),
        crop(SIZE, 2.0, (40, 60), (0.3, 0.2), flip=True),
    ):
        canvas = (90, 130)
        one, two = (draw_mask(part, SIZE, canvas, placement) for part in (polygon, encoded))
        assert np.abs(one.astype(int) - two).mean() < 0.01
        boxes = placement.boxes(np.array([[5, 6, 20, 18]], np.float32))
        assert np.abs(boxes_of(one[None]) - boxes).max() <= 1


def test_a_box_by_hand():
    placement = Placement(Box(10, 20, 20, 30), (40, 60))
    boxes = placement.boxes(np.array([[25, 15, 60, 25]], np.float32))
    assert boxes.tolist() == [[10, 10, 60, 30]]
    mirrored = Placement(Box(10, 20, 20, 30), (40, 60), flip=True)
    assert mirrored.boxes(np.array([[25, 15, 60, 25]], np.float32)).tolist() == [[0, 10, 50, 30]]


@pytest.fixture
def data(tmp_path):
    write_coco(tmp_path)
    return open_instances(str(tmp_path), (), (), 0.34, 0)[0]


def unpacked(sample) -> np.ndarray:
    return np.unpackbits(sample.arrays["masks"], axis=-1)[..., :60]


@pytest.mark.parametrize("scale", [(0.3, 0.5), (1.0, 1.0), (1.5, 2.0)])
def test_boxes_and_masks_lie_on_their_objects(data, scale):
    """Red and blue pixels are where the boxes and masks of class red and blue are."""
    config = JitterConfig(scale=scale, distort=False, mean=(0.5,) * 3, std=(0.5,) * 3)
    samples = InstanceSamples(data, config, Geometry(SIZE, 40, fits=True), 3, masks=True)
    seen = 0
    for draw in range(20):
        sample = samples.load(int(data.indices[0]), (draw,))
        height, width = sample.pixels.shape[:2]
        masks = unpacked(sample)
        for box, label, mask in zip(sample.arrays["boxes"], sample.arrays["labels"], masks, strict=True):
            channel = {0: 2, 1: 0}[int(label)]
            coloured = sample.pixels[..., channel] > 190
            x1, y1, x2, y2 = (round(float(value)) for value in box)
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            inside = mask[:height, :width].astype(bool)
            union = (coloured | inside).sum()
            assert (coloured & inside).sum() / union > 0.6
            found = np.zeros_like(coloured)
            found[y1:y2, x1:x2] = True
            assert (coloured & found).sum() / (coloured | found).sum() > 0.6
            seen += 1
    assert seen > 15


def test_crowds_are_not_trained_on(tmp_path):
    file = write_coco(tmp_path)
    change(file, lambda content: content["annotations"][0].update(iscrowd=1))
    data = read_coco(file, tmp_path / "train2017")
    samples = InstanceSamples(data, PLAIN, Geometry(SIZE, 40, fits=True), 3, masks=True)
    assert samples.load(0, (0,)).arrays["labels"].tolist() == [0]


def test_copy_paste_moves_pixels_boxes_and_masks_together(data):
    config = JitterConfig(scale=(0.5, 1.0), distort=False, mean=(0.5,) * 3, std=(0.5,) * 3)
    samples = InstanceSamples(data, config, Geometry(SIZE, 40, fits=True), 3, masks=True, paste=1.0)
    index = int(data.indices[0])
    counts = set()
    for draw in range(20):
        sample = samples.load(index, (draw,))
        masks = unpacked(sample)
        counts.add(len(masks))
        assert masks.sum(0).max(initial=0) <= 1  # pasted objects hide those below
        assert np.abs(boxes_of(masks) - sample.arrays["boxes"]).max() < 1  # exact polygons, or pixels
        for label, mask in zip(sample.arrays["labels"], masks, strict=True):
            height, width = sample.pixels.shape[:2]
            assert not mask[height:].any()
            shown = sample.pixels[mask[:height, :width].astype(bool)]
            assert (shown[:, {0: 2, 1: 0}[int(label)]] > 190).mean() > 0.7
    assert max(counts) > 2  # of which an image has two


def test_boxes_only(tmp_path):
    write_coco(tmp_path, polygon=False)
    data = open_instances(str(tmp_path), (), (), 0.34, 0)[0]
    assert not data.has_masks
    samples = InstanceSamples(data, PLAIN, Geometry(SIZE, 40, fits=True), 3, masks=False)
    assert set(samples.load(int(data.indices[0]), (0,)).arrays) == {"boxes", "labels"}
