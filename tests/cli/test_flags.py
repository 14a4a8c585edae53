"""What a person in a terminal sees of a mistake in flags: one plain line."""

import os
import pty
import subprocess
import sys
from contextlib import contextmanager

import pytest

from fastmim.cli.entry import VERBS, main


@contextmanager
def terminal(monkeypatch):
    """Both streams of this process are a terminal of 80 columns with colours; gives a way to read it."""
    reader, writer = pty.openpty()
    for name, value in {"TERM": "xterm-256color", "COLORTERM": "truecolor", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    with monkeypatch.context() as patch, os.fdopen(writer, "w", buffering=1) as stream:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        patch.setattr(sys, "__stdout__", stream)
        patch.setattr(sys, "__stderr__", stream)
        assert sys.stdout.isatty()

        def read() -> str:
            stream.write("\0")
            stream.flush()
            content = b""
            while not content.endswith(b"\0"):
                content += os.read(reader, 1 << 16)
            return content[:-1].decode().replace("\r\n", "\n")

        yield read
    os.close(reader)


MISTAKES = {
    "unknown": ["--no-such-flag", "1e-3"],
    "of another type": ["--workers", "many"],
    "without its value": ["--data"],
    "a word too many": ["stray", "word"],
    "colours in it": ["--\x1b[31mred\x1b[0m"],
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize("verb", VERBS)
def test_a_mistake_is_one_plain_line(verb, mistake, monkeypatch):
    part = ["step"] if verb == "bench" else []
    with terminal(monkeypatch) as read:
        code = main([verb, *part, *mistake])
        seen = read()
    assert code == 2
    (line,) = seen.splitlines()
    assert line.startswith("fastmim: ")
    assert line.isprintable()
    assert not set(line) & set("│╭╮╰╯─━")
    assert verb == "recipes" or any(word.strip("-") in line for word in [*mistake, "red"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("pretrain --lr 1e-3", "did you mean --optim.base-lr?"),
        ("pretrain --accelerator gpu", "'auto', 'cpu', 'cuda', 'mps'"),
        ("pretrain --image-size foo", "--image-size"),
        ("pretrain --mask.pattern 3", "--mask.pattern"),
        ("finetune --crop.decode slow", "'full', 'fast'"),
        ("payoff --seeds few", "--seeds"),
        ("bench nothing", "'loader'"),
        ("backbones --chek", "did you mean --check?"),
        ("pertrain", "there is no verb 'pertrain'"),
    ],
)
def test_the_line_names_flag_and_way_out(words, said, monkeypatch):
    with terminal(monkeypatch) as read:
        code = main(words.split())
        seen = read()
    assert code == 2
    (line,) = seen.splitlines()
    assert said in line
    assert line.isprintable()


def test_the_terminal_of_these_tests_shows_colours(monkeypatch):
    """What is asserted above can fail: tyro's own complaint in such a terminal is many lines, coloured."""
    import tyro

    def function(number: int = 1) -> int:
        return number

    with terminal(monkeypatch) as read:
        with pytest.raises(SystemExit):
            tyro.cli(function, args=["--other"])
        seen = read()
    assert "\x1b[" in seen
    assert len(seen.splitlines()) > 2


def test_a_process_of_its_own_writes_the_same_line():
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "fastmim", "stats", "--lr", "1e-3"]
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"TERM": "xterm-256color"}
    with subprocess.Popen(command, stdin=writer, stdout=writer, stderr=writer, env=environment) as child:
        os.close(writer)
        seen = b""
        try:
            while read := os.read(reader, 1 << 16):
                seen += read
        except OSError:  # its end, on Linux
            pass
    os.close(reader)
    assert child.returncode == 2
    said = "Unrecognized options: --lr, 1e-3; `fastmim stats --help` lists all options"
    assert seen.decode().replace("\r\n", "\n") == f"fastmim: {said}\n"
