"""JSON files that cannot be read, or that mislead, are refused with their name."""

import os

import pytest

from mlx_lfm2vl import ConfigError
from mlx_lfm2vl.config import read_json


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1, 2]", b'"lfm2"', b"\xff\xfe{}", b"[" * 100_000], ids=lambda c: repr(c[:8])
)
def test_unreadable_json_is_refused_with_the_file_name(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(
        ConfigError,
        match=r"config\.json: (cannot be read as JSON|holds|begins with a byte order mark; save it as UTF-8)",
    ):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
        (b'{"a": "\\ud800"}', "half a character"),
        (b'{"a": ' + b"1" * 5000 + b"}", "cannot be read as JSON"),
        (b'{"a": "' + b"x" * 2**24 + b'"}', "more than 16,777,216 bytes"),
        (b'{"a": "\xff"}', r"not UTF-8 text \(byte 7\)"),
        (b"\xef\xbb\xbf{}", "byte order mark; save it as UTF-8 without one"),
    ],
    ids=["key twice", "half a character", "endless number", "endless file", "latin-1", "UTF-8 with a mark"],
)
def test_json_that_misleads_is_refused(tmp_path, content, says):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"config\.json: .*{says}") as caught:
        read_json(tmp_path / "config.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "config.json")  # would never end
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read \(is not a regular file\)"):
        read_json(tmp_path / "config.json")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="is not a regular file"):
        read_json(tmp_path / "zero")
    with pytest.raises(ConfigError, match="is not a regular file"):
        read_json(tmp_path)


def test_missing_json_is_refused_with_the_file_name(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        read_json(tmp_path / "config.json")
