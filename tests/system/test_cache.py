"""Where results are remembered: the system's cache folder, a folder of the user's choice, or nowhere."""

from pathlib import Path

import pytest

from fastmim.system import cache


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home whose system keeps caches elsewhere than in ~/.cache, as macOS does."""
    monkeypatch.delenv(cache.SWITCH, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    place = tmp_path / "Library" / "Caches" / "fastmim"
    monkeypatch.setattr(cache, "user_cache_path", lambda name, appauthor: place)
    return tmp_path


def test_the_systems_folder_is_taken_unless_an_earlier_one_is_there(home):
    systems, earlier = home / "Library" / "Caches" / "fastmim", home / ".cache" / "fastmim"
    assert cache.cache_folder() == systems
    earlier.mkdir(parents=True)
    assert cache.cache_folder() == earlier
    systems.mkdir(parents=True)
    assert cache.cache_folder() == systems


def test_the_variable_decides(home, monkeypatch):
    monkeypatch.setenv(cache.SWITCH, "~/elsewhere")
    assert cache.cache_folder() == home / "elsewhere"
    monkeypatch.setenv(cache.SWITCH, "off")
    assert cache.cache_folder() is None


def test_on_linux_it_is_where_it_was(tmp_path, monkeypatch):
    monkeypatch.delenv(cache.SWITCH, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "fastmim"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path("~/.cache/fastmim").expanduser()
