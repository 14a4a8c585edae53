from fastmim.bench.loader import bench_loader, make_images
from fastmim.data.decode import decode


def test_every_way_is_measured_and_has_its_target(photos):
    told = []
    lines = bench_loader(str(photos), 1, told.append)
    assert len(told) == 1
    assert "24 JPEGs" in told[0]
    loaders = {line.name: line for line in lines if line.unit == "images/s"}
    assert list(loaders) == ["files as they are", "packed, JPEG 144", "packed, JPEG 192", "packed, raw 144"]
    for line in loaders.values():
        assert line.ratio == line.ours / line.baseline
        assert line.target.startswith("at least ")
    (near,) = [line for line in lines if line.name == "crops, files as they are"]
    assert near.ours > 32
    assert near.met
    assert sum(line.unit == "us/image" for line in lines) == 4


def test_images_are_made_where_none_are_given(tmp_path):
    made = make_images(tmp_path / "made", 20)
    assert len(made) == 20
    assert {decode(made.read(index)).shape for index in range(20)} == {(375, 500, 3)}
    again = make_images(tmp_path / "again", 20)
    assert [made.read(index) for index in range(20)] == [again.read(index) for index in range(20)]
