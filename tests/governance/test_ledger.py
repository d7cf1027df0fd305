"""The log: chained, append-only, every changed byte found at its seq; certificates against a naive tree."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.errors import InputError, LedgerBrokenError
from palimpsest.governance.ledger import START, Ledger


def filled(folder, n: int) -> Ledger:
    ledger = Ledger(folder / "ledger.jsonl")
    for k in range(n):
        ledger.append({"actor": "someone", "what": f"step {k} – é"})
    return ledger


def test_entries_are_chained_and_stay(tmp_path):
    ledger = filled(tmp_path, 3)
    before = ledger.path.read_bytes()
    again = Ledger(ledger.path)
    again.append({"actor": "another"})
    assert ledger.path.read_bytes().startswith(before)
    entries = ledger.entries()
    assert [entry["seq"] for entry in entries] == [0, 1, 2, 3]
    assert [entry["prev_hash"] for entry in entries] == [START, *(entry["hash"] for entry in entries[:-1])]
    assert ledger.verify() == 4
    assert ledger.head == entries[-1]["hash"]


def test_an_empty_log_is_whole(tmp_path):
    ledger = Ledger(tmp_path / "none.jsonl")
    assert ledger.verify() == 0
    assert ledger.head == START


def test_every_flipped_byte_is_found_at_its_seq(tmp_path):
    ledger = filled(tmp_path, 4)
    whole = ledger.path.read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == 10]
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        ledger.path.write_bytes(damaged)
        with pytest.raises(LedgerBrokenError) as error:
            ledger.verify()
        assert error.value.seq == sum(end < position for end in ends)
        assert f"seq {error.value.seq}" in str(error.value)


@pytest.mark.parametrize("line", [b"{}", b"[]", b"null", b"not json", b"\xff\xfe"])
def test_a_foreign_line_is_named_and_nothing_is_built_on_it(tmp_path, line):
    ledger = filled(tmp_path, 2)
    ledger.path.write_bytes(ledger.path.read_bytes() + line + b"\n")
    before = ledger.path.read_bytes()
    with pytest.raises(LedgerBrokenError, match="seq 2"):
        ledger.append({"actor": "x"})
    assert ledger.path.read_bytes() == before


def test_a_removed_a_doubled_and_a_torn_line(tmp_path):
    ledger = filled(tmp_path, 3)
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    for damaged, seq in (([lines[0], lines[2]], 1), ([lines[0], lines[0], *lines[1:]], 1), ([*lines[:2], lines[2][:-20]], 2)):
        ledger.path.write_bytes(b"".join(damaged))
        with pytest.raises(LedgerBrokenError) as error:
            ledger.entries()
        assert error.value.seq == seq


def test_a_cut_or_rewritten_end_is_found_by_a_head_kept_elsewhere(tmp_path):
    ledger = filled(tmp_path, 3)
    head, first = ledger.head, ledger.entries()[0]["hash"]
    assert ledger.verify(head) == ledger.verify(first) == 3
    ledger.path.write_bytes(b"".join(ledger.path.read_bytes().splitlines(keepends=True)[:2]))
    assert ledger.verify(first) == 2
    with pytest.raises(LedgerBrokenError, match="cut off"):
        ledger.verify(head)
    ledger.append({"actor": "a forger"})
    with pytest.raises(LedgerBrokenError, match="cut off"):
        ledger.verify(head)


def test_bad_entries(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(InputError, match="seq"):
        ledger.append({"seq": 4})
    with pytest.raises(InputError, match="zone"):
        ledger.append({}, time=datetime(2025, 1, 1))
    with pytest.raises(InputError, match="JSON"):
        ledger.append({"x": object()})
    assert ledger.verify() == 0


def test_writers_do_not_fork_the_chain(tmp_path):
    path = tmp_path / "ledger.jsonl"
    threads = [threading.Thread(target=lambda: [Ledger(path).append({"actor": "x"}) for _ in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Ledger(path).verify() == 20


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 as a sentence: the greatest power of two that leaves something over goes left."""
    if len(leaves) == 1:
        return leaves[0]
    k = max(2**i for i in range(20) if 2**i < len(leaves))
    return hashlib.sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


@settings(max_examples=12)
@given(n=st.integers(1, 17))
def test_certificates(tmp_path_factory, n):
    ledger = filled(tmp_path_factory.mktemp("ledger"), n)
    leaves = [hashlib.sha256(b"\x00" + bytes.fromhex(entry["hash"])).digest() for entry in ledger.entries()]
    for seq in {0, n // 2, n - 1}:
        certificate = ledger.certificate(seq)
        assert certificate.root == naive_root(leaves).hex()
        assert certificate.holds()
        assert not replace(certificate, entry={**certificate.entry, "actor": "another"}).holds()
        assert not replace(certificate, root="00" * 32).holds()
        if certificate.path:
            assert not replace(certificate, path=certificate.path[:-1]).holds()
    with pytest.raises(InputError, match=f"no entry {n}"):
        ledger.certificate(n)
