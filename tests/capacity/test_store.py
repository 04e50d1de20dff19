import errno
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.capacity.store import Store, decode, encode, merged, read_rows
from plansim.errors import InputError

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
names = st.text().filter(lambda name: name != "crc")


@given(st.dictionaries(names, plain, min_size=1))
def test_rows_survive_a_round_trip(row):
    assert decode(encode(row)) == row


@given(st.integers(0, 60), st.integers(1, 255))
def test_a_changed_byte_never_passes(at, flip):
    row = {"key": "abc", "figure": 12345.678, "status": "ok"}
    raw = bytearray(encode(row).encode())
    raw[at % len(raw)] ^= flip
    try:
        found = decode(raw.decode())
    except ValueError:
        return
    assert found == row  # a change in white space or the checksum's case


def test_a_corrupt_line_is_named_and_skipped(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(
        f"{encode({'key': 'a'})}\nnonsense\n\n{encode({'key': 'b'})}\n" + encode({"key": "c"})[:9]
    )
    problems = []

    assert [r["key"] for r in read_rows(path, problems)] == ["a", "b"]
    assert [p.split(": ")[0] for p in problems] == [f"{path}:2", f"{path}:5"]
    assert "cut off" in problems[1]


def test_a_torn_line_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(encode({"key": "a"}) + "\n" + encode({"key": "torn"})[:12])
    with Store(path) as store:
        store.append({"key": "b"})

    assert [r["key"] for r in read_rows(path)] == ["a", "b"]


def test_one_writer_at_a_time(tmp_path):
    with Store(tmp_path / "r.jsonl"), pytest.raises(InputError, match="another sweep"):
        Store(tmp_path / "r.jsonl")


def test_a_full_disk_keeps_what_was_written(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    with Store(path) as store:
        store.append({"key": "a"})
        real = store._file

        class Full:
            def write(self, text):
                real.write(text[:5])
                real.flush()
                raise OSError(errno.ENOSPC, "No space left on device")

            def __getattr__(self, name):
                return getattr(real, name)

        store._file = Full()
        with pytest.raises(InputError, match="No space left on device; the results so far are kept"):
            store.append({"key": "b"})
        store._file = real

    assert path.read_text() == encode({"key": "a"}) + "\n"


def test_merging_keeps_each_scenario_once_and_prefers_answers(tmp_path):
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    first.write_text(f"{encode({'key': 'a', 'status': 'failed'})}\n{encode({'key': 'b', 'status': 'ok'})}\n")
    second.write_text(f"{encode({'key': 'a', 'status': 'ok'})}\n{encode({'key': 'b', 'status': 'failed'})}\n")

    assert {k: r["status"] for k, r in merged([first, second]).items()} == {"a": "ok", "b": "ok"}


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        list(read_rows(tmp_path / "none.jsonl"))


def test_not_a_number_is_never_written():
    with pytest.raises(ValueError, match="JSON"):
        encode({"x": float("nan")})
    assert json.loads(encode({"x": 1.5}))["x"] == 1.5
