"""JSON and YAML of somebody else: whatever they hold, one line that names the file, or the plain values."""

import json
import os
import random
from dataclasses import dataclass

import pytest
import yaml

from fastmim.cli.entry import main
from fastmim.config import PretrainConfig, build
from fastmim.errors import UsageError, printable
from fastmim.system.documents import (
    MOST_DEPTH,
    MOST_SCALAR,
    BareName,
    Count,
    Finite,
    Truth,
    Whole,
    checked,
    is_plain,
    parse_json,
    parse_yaml,
    read_json,
    read_text,
    read_yaml,
    shown,
)


def complaint(function, *arguments) -> str:
    with pytest.raises(UsageError) as error:
        function(*arguments)
    said = str(error.value)
    assert len(said) < 500
    return said


def nested(depth: int, opened: str = "[", closed: str = "]") -> str:
    return opened * depth + closed * depth


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is not JSON"),
        ("{nope", "is not JSON"),
        ("\ufeff{}", "BOM"),
        ('{"a": 1, "a": 2}', "'a' appears twice"),
        ('{"b": {"a": 1, "a": 1}}', "'a' appears twice"),
        ("9" * 10_000, "is not JSON"),
        ('{"a": -' + "9" * 10_000 + "}", "is not JSON"),
        (nested(MOST_DEPTH + 1), f"more than {MOST_DEPTH}"),
        (nested(10_000), f"more than {MOST_DEPTH}"),
        (nested(200_000), f"more than {MOST_DEPTH}"),
        ("[" * 200_000, ""),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, f"more than {MOST_DEPTH}"),
        ("[1] 2", "is not JSON"),
    ],
    ids=lambda value: value[:12],
)
def test_json_that_is_none(text, part):
    said = complaint(parse_json, text, "a.json")
    assert said.startswith("a.json")
    assert part in said


def test_json_is_what_was_written():
    draw = random.Random(0)

    def value(depth):
        kind = draw.randrange(7 if depth else 5)
        if kind < 5:
            return [None, True, draw.randrange(-(10**9), 10**9), draw.random(), "ä\n\x1b"][kind]
        parts = [value(depth - 1) for _ in range(draw.randrange(4))]
        return parts if kind == 5 else {str(number): part for number, part in enumerate(parts)}

    for _ in range(200):
        written = value(4)
        assert parse_json(json.dumps(written), "a.json") == written
    assert parse_json(nested(MOST_DEPTH), "a.json") is not None


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: &x 1\nb: *x", "anchors and aliases"),
        ("a: &x [1, 2]", "anchors and aliases"),
        ("base: &b {seed: 1}\nc: {<<: *b}", "anchors and aliases"),
        ("!!python/object/apply:os.system ['touch mark']", "is not YAML"),
        ("model: !!python/name:os.system ''", "is not YAML"),
        ("model: !!python/module:os ''", "is not YAML"),
        ("model: !anything x", "is not YAML"),
        ("seed: 1\nseed: 2", "'seed' appears twice"),
        ("mask: {ratio: 0.5, ratio: 0.6}", "'ratio' appears twice"),
        ("a: " + nested(MOST_DEPTH + 1), f"more than {MOST_DEPTH}"),
        ("a: " + nested(10_000), f"more than {MOST_DEPTH}"),
        ("a: " + "x" * (MOST_SCALAR + 1), f"more than {MOST_SCALAR}"),
        ("a: " + "9" * 5_000, "is not YAML"),
        ("a: 2026-13-45", "is not YAML"),
        ("a: [", "is not YAML"),
        ("a: 1\n--- \nb: 2", "is not YAML"),
        ("- 1\n- 2", "names and values, not a list"),
        ("5", "names and values, not a int"),
        ("{[1, 2]: 3}", "is not YAML"),
        ("? {a: 1}\n: 2", "is not YAML"),
        ("a: \x07", "is not YAML"),
    ],
    ids=lambda value: value[:16],
)
def test_yaml_that_is_not_taken(text, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = complaint(parse_yaml, text, "a.yaml")
    assert said.startswith("a.yaml")
    assert part in said
    assert not (tmp_path / "mark").exists()


def test_plain_yaml_is_what_yaml_says():
    text = "a: 1\nb: [1.5, .inf, true, null, x]\nc: {d: {e: 'f'}}\n"
    assert parse_yaml(text, "a.yaml") == yaml.safe_load(text)
    assert parse_yaml("# nothing", "a.yaml") == {}


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_what_is_no_file_of_text(read, tmp_path):
    file = tmp_path / "a"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    file.write_bytes(b"\xff\xfe{}")
    assert "is not UTF-8 text" in complaint(read, file)
    if read is read_json:
        assert "is not a regular file" in complaint(read, tmp_path / "pipe")
        assert "is not a regular file" in complaint(read, tmp_path)
        for name in ("nowhere", "dangling"):
            with pytest.raises(OSError, match="No such file"):
                read(tmp_path / name)
    else:
        assert "is not a regular file" in complaint(read, tmp_path)
        for name in ("nowhere", "dangling"):
            assert "No such file" in complaint(read, tmp_path / name)
        assert "is not a regular file" in complaint(read, tmp_path / "pipe")


def test_files_are_read_up_to_a_limit(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"x" * 2000)
    assert read_text(file, 2000) == "x" * 2000
    assert "the limit for such files" in complaint(read_text, file, 1999)
    with open(tmp_path / "sparse", "wb") as sparse:
        sparse.truncate(1 << 40)
    assert "the limit for such files" in complaint(read_text, tmp_path / "sparse", 1 << 20)


@dataclass(frozen=True)
class Form:
    whole: Whole
    count: Count = 0
    finite: Finite = 0.0
    truth: Truth = False
    name: BareName = "a"
    sizes: tuple[Whole, Whole] = (1, 1)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ([], "must hold names and values"),
        ({}, "whole is missing"),
        ({"whole": True}, "whole = True"),
        ({"whole": "5"}, "whole = '5'"),
        ({"whole": 5.0}, "whole = 5.0"),
        ({"whole": 1, "count": -1}, "count = -1"),
        ({"whole": 1, "finite": float("nan")}, "finite = nan"),
        ({"whole": 1, "finite": float("inf")}, "finite = inf"),
        ({"whole": 1, "finite": True}, "finite = True"),
        ({"whole": 1, "truth": 1}, "truth = 1"),
        ({"whole": 1, "sizes": [1]}, "sizes.1 is missing"),
        ({"whole": 1, "sizes": 5}, "sizes = 5: input should be a valid list"),
        *(({"whole": 1, "name": name}, "bare name") for name in ("../a", "/a", "a/b", "", "..", "a\0b")),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_form_takes_its_own_types_only(values, part):
    said = complaint(checked, Form, values, "a.json")
    assert said.startswith("a.json: ")
    assert part in said


def test_values_in_messages_are_short_and_what_is_plain_is_bounded():
    for value in ("x" * 10**6, [[[[1]]]] * 100, {"a": "b" * 10**5}, 10**4000, 10**5000, b"x" * 1000):
        assert len(shown(value)) < 500
    assert is_plain({"a": [1, 2.5, None, True, "x"]}, 8, 2)
    for value in (
        float("nan"),
        float("-inf"),
        "x" * 9,
        [0] * 9,
        [[[1]]],
        {1: 2},
        b"x",
        object(),
    ):
        assert not is_plain(value, 8, 2)


def test_a_terminal_obeys_no_name():
    assert printable("a\x1b[31mb\x07\r\nc\x9b\u202e\ud800é 字") == (
        "a\\x1b[31mb\\x07\\r\\nc\\x9b\\u202e\\ud800é 字"
    )


def test_the_command_line_escapes_what_it_says(tmp_path, capsys):
    assert main(["pretrain", "--data", "x\x1b]0;title\x07", "--out", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert "\\x1b]0;title\\x07" in said
    assert said.strip().isprintable()


def test_settings_are_built_from_what_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 3\nmask: {ratio: 0.5}\n")
    config = build(PretrainConfig, read_yaml(tmp_path / "a.yaml"))
    assert (config.seed, config.mask.ratio) == (3, 0.5)
