"""Files are whole or not there; Markdown tables line up."""

import pytest

from fastmim.errors import RunError
from fastmim.system.files import replacing, write_atomically
from fastmim.system.markdown import table


def test_a_file_takes_its_place_only_when_it_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as part:
        part.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"

    def fails():
        with replacing(path) as part:
            part.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert path.read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_that_fails_names_the_file_and_keeps_the_earlier_one(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, lambda file: file.write(b"first"))

    def full(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"cannot write .*a\.txt: No space left on device; the earlier one is"):
        write_atomically(path, full)
    assert path.read_bytes() == b"first"
    with pytest.raises(RunError, match="No such file"):
        write_atomically(tmp_path / "nowhere" / "a.txt", lambda file: None)


@pytest.mark.parametrize("chained", [False, True])
def test_a_full_disk_is_named_where_torch_does_not(tmp_path, chained):
    """Also when the partial file, once deleted, has left room."""

    def full(file):
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            if chained:
                raise RuntimeError("[enforce fail]") from None
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 2 vs 1")

    with pytest.raises(RunError, match="No space left on device; free some, then resume"):
        write_atomically(tmp_path / "last.ckpt", full)


def test_a_markdown_table_has_a_rule_for_each_column():
    expected = "| name | a | b |\n| --- | ---: | ---: |\n| x | 1 | 2 |"
    assert table(("name", "a", "b"), [("x", "1", "2")]) == expected
    assert table(("a", "b"), [], "rl").splitlines()[1] == "| ---: | --- |"
