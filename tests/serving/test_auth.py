"""API keys: who is let in, what a key must be like, and files of keys."""

from __future__ import annotations

import hmac

import pytest

from palimpsest.errors import InputError, StorageError
from palimpsest.serving.auth import KeyRing, bearer, read_keys

KEYS = ["first-key-of-the-ring", "second-key-of-the-ring"]


def test_a_key_is_known_by_its_number_and_nothing_of_it_is_kept():
    ring = KeyRing(KEYS)
    assert [ring.number(key) for key in KEYS] == [1, 2]
    assert len(ring) == 2
    for wrong in ("", KEYS[0] + " ", KEYS[0][:-1], KEYS[0].upper(), "\ud800", "é" * 20):
        assert ring.number(wrong) is None
    assert not any(key in repr(vars(ring)) for key in KEYS)


def test_every_key_is_compared_whatever_was_found(monkeypatch):
    ring, seen = KeyRing([*KEYS, "third-key-of-the-ring"]), []
    compare = hmac.compare_digest

    def watched(one, other):
        seen.append(other)
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    assert ring.number(KEYS[0]) == 1
    assert ring.number("no-such-key-in-the-ring") is None
    assert len(seen) == 6


@pytest.mark.parametrize("key", ["short", "", "has a space in the middle", "ümlaut-ümlaut-ümlaut", "line\nbreak-line-break"])
def test_keys_that_can_be_guessed_or_not_be_sent_are_refused(key):
    with pytest.raises(InputError, match="Key number 2"):
        KeyRing([KEYS[0], key])


def test_the_same_key_twice_is_refused():
    with pytest.raises(InputError, match="twice"):
        KeyRing([KEYS[0], KEYS[0]])


def test_a_file_of_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# who\n{KEYS[0]}\n\n  {KEYS[1]}  \n")
    assert read_keys(file) == KEYS
    file.write_text("# nobody\n\n")
    with pytest.raises(InputError, match="no key"):
        read_keys(file)
    file.write_bytes(b"\x80\x80")
    with pytest.raises(InputError, match="not UTF-8"):
        read_keys(file)
    with pytest.raises(StorageError, match="cannot be read"):
        read_keys(tmp_path / "none")


def test_the_token_of_a_header():
    assert bearer([(b"accept", b"*/*"), (b"authorization", b"Bearer  abc ")]) == "abc"
    assert bearer([(b"Authorization", b"bearer abc")]) == "abc"
    assert bearer([(b"authorization", b"Basic abc")]) is None
    assert bearer([(b"authorization", b"Bearer")]) == ""
    assert bearer([]) is None
