"""Files at the border: safe reading, places in messages, overrides, writing whole or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from plansim.errors import InputError
from plansim.files import (
    MAX_YAML_BYTES,
    Bytes,
    Count,
    Schema,
    check,
    dump_json,
    dump_yaml,
    plain,
    read_text,
    read_yaml,
    require_writable,
    resolve,
    write_atomic,
)


class Inner(Schema):
    size: Bytes = 0.0
    count: Count = 1


class Outer(Schema):
    name: str
    inner: Inner = Inner()
    many: list[Inner] = []  # noqa: RUF012


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
NUMBERED_BOMB = "0: &0 [x, x]\n" + "".join(f"{n}: &{n} [*{n - 1}, *{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "YAML aliases"),
        ("base: &x {a: 1}\nother:\n  <<: *x\n", r"file\.yaml:3:7: YAML aliases"),
        (NUMBERED_BOMB, "YAML aliases"),
        ("a: &x 1  # don't\nb: *x  # can't\n", "YAML aliases"),
        ("a: !!python/tuple [1]\nb: !map {c: 1}\n", "YAML tags"),
        ("a: 1\na: 2\n", r"file\.yaml:2:1: not valid YAML: .*duplicate key"),
        ("a: [1, 2\nb: 3\n", r"file\.yaml:\d+:\d+: not valid YAML"),
        ("a: b: c\n", r"file\.yaml:1:5: not valid YAML"),
        ("\tname: x", "not valid YAML"),
        ("---\na: 1\n---\nb: 2\n", "not valid YAML"),
        (b"\xff\xfe\x00name", "not a UTF-8 text file"),
        ("a: " + "[" * 5000, "nested deeper than 32 levels"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested deeper than 32 levels"),
    ],
)
def test_what_is_no_honest_yaml(tmp_path, text, message):
    start = time.process_time()

    with pytest.raises(InputError, match=message):
        read_yaml(written(tmp_path, text))
    assert time.process_time() - start < 5


def test_what_is_no_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_yaml(tmp_path / "gone.yaml")
    with pytest.raises(InputError, match="is a folder"):
        read_yaml(tmp_path)
    with pytest.raises(InputError, match="too large"):
        read_yaml(written(tmp_path, "#" * (MAX_YAML_BYTES + 1)))
    with pytest.raises(InputError, match="too large, at most 3 are read"):
        read_text(written(tmp_path, "four"), max_bytes=3)
    with pytest.raises(InputError, match="too large, at most 9 are read"):
        read_text(Path("/dev/zero"), max_bytes=9)


def test_a_star_in_text_or_comment_is_no_alias(tmp_path):
    data = read_yaml(written(tmp_path, 'a: "*x"  # see *y\nb: 2 *3\nc: price of *spot* machines\n'))

    assert plain(data) == {"a": "*x", "b": "2 *3", "c": "price of *spot* machines"}


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(tmp_path):
    assert plain(read_yaml(written(tmp_path, "\ufeffa: 1\r\nb: x\r\n"))) == {"a": 1, "b": "x"}


def test_numbers_read_as_people_mean_them(tmp_path):
    data = plain(read_yaml(written(tmp_path, "a: 1e9\nb: on\nc: 12:30:45\nd: 0o17\ne: 2026-11-22\n")))

    assert data == {"a": 1e9, "b": "on", "c": "12:30:45", "d": 15, "e": "2026-11-22"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nme: x\n", r"f:1:1: nme: unknown key \(did you mean 'name'\? known: inner, many, name\)"),
        ("inner: {}\n", r"f: name: this key is required"),
        ("name: x\ninner: {size: 3 us}\n", r"f:2:9: inner\.size: '3 us' is in seconds, expected bytes"),
        ("name: x\ninner: {count: 1.5}\n", r"f:2:9: inner\.count: must be a valid integer, got 1\.5"),
        (
            "name: x\nmany:\n  - {}\n  - {cont: 1}\n",
            r"f:4:6: many\.1\.cont: unknown key \(did you mean 'count'",
        ),
        ("name: [1]\n", r"f:1:1: name: must be a valid string"),
        ("- 1\n", r"f: expected a mapping of keys, found a list"),
        ("", r"f: expected a mapping of keys, found nothing"),
        ("name: !secret x\n", r"YAML tags \(!name\) are not accepted"),
    ],
)
def test_errors_name_place_key_and_what_was_expected(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        check(read_yaml(written(tmp_path, text)), Outer, source="f")


def test_deep_nesting_is_refused():
    data: dict = {"name": "x"}
    for _ in range(50):
        data = {"inner": data}

    with pytest.raises(InputError, match="nested deeper than 32"):
        check(data, Outer, source="f")


def test_overrides_change_a_copy():
    data = {"name": "x", "many": [{"count": 1}, {"count": 2}]}
    changed = check(
        data, Outer, source="f", overrides={"inner.size": '"1 KiB"', "many.1.count": "5", "name": "y"}
    )

    assert (changed.inner.size, changed.many[1].count, changed.name) == (1024.0, 5, "y")
    assert data == {"name": "x", "many": [{"count": 1}, {"count": 2}]}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("many.7.count", "-o many.7.count: '7' is no index into f's list of 0 items"),
        ("many.x", "'x' is no index"),
        ("name.deeper", "'deeper' goes below a plain value"),
    ],
)
def test_overrides_that_lead_nowhere(path, message):
    with pytest.raises(InputError, match=message):
        check({"name": "x", "many": []}, Outer, source="f", overrides={path: "1"})


scalars = (
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(-1e12, 1e12) | st.text(max_size=20)
)
trees = st.recursive(
    scalars,
    lambda t: (
        st.lists(t, max_size=3) | st.dictionaries(st.text("abc1_", min_size=1, max_size=4), t, max_size=3)
    ),
    max_leaves=10,
)


@given(data=st.dictionaries(st.text("abc", min_size=1), trees, max_size=4))
@example(data={"a": "line\x85break", "b": ["\u2028", "é"]})
def test_what_is_dumped_reads_back(data, tmp_path_factory):
    path = written(tmp_path_factory.mktemp("yaml"), dump_yaml(data))

    assert plain(read_yaml(path)) == data


def test_json_is_strict():
    assert dump_json({"µ": 1.5}) == '{\n  "µ": 1.5\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json({"a": float("nan")})


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_atomic(path, "one")
    write_atomic(path, "two")

    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_refused_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_what_cannot_be_written_is_said_before_the_work(tmp_path):
    require_writable(tmp_path / "new" / "file.txt")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(InputError, match="is a folder, expected a file"):
        require_writable(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        require_writable(Path("/proc/none/file.txt"))


def test_names_resolve_in_order(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "a.yaml").write_text("")
    (second / "b.1.yaml").write_text("")
    monkeypatch.chdir(tmp_path)

    def find(name: str) -> Path:
        return resolve(name, (first, second), (".yaml",), "thing", lambda: ["a", "b.1"])

    assert find("a") == find("a.yaml") == first / "a.yaml"
    assert find("b.1") == second / "b.1.yaml"
    assert find(str(second / "a")) == second / "a.yaml"
    with pytest.raises(
        InputError, match=r"no thing 'b\.2' \(did you mean 'b\.1'\? known: a, b\.1; or give a path\)"
    ):
        find("b.2")
