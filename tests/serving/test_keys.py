from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from datetime import date, timedelta

import pytest
from typer.testing import CliRunner

from cytolake.serving import keys
from cytolake.serving.guard import GuardConfig
from cytolake.serving.keys import ApiKey, KeyRing, find_key, key_digest, new_key, parse_key, read_keys

PLAIN = "a-key-that-nobody-guesses"
DIGEST = hashlib.sha256(PLAIN.encode()).hexdigest()


def test_a_key_that_is_written_down_is_read_back():
    for key in (
        ApiKey(name="lab", digest=DIGEST),
        ApiKey(name="lab.2", digest=DIGEST, scopes=frozenset({"embed", "search"})),
        ApiKey(name="x-y", digest=DIGEST, scopes=frozenset({"qc"}), expires=date(2027, 1, 1)),
    ):
        assert parse_key(key.line()) == key


def test_the_old_forms_open_everything_for_ever():
    for text in (PLAIN, f"sha256:{DIGEST}", f"sha256:{DIGEST.upper()}"):
        key = parse_key(text)
        assert (key.digest, key.scopes, key.expires) == (DIGEST, frozenset(), None)
        assert key.name == f"key-{DIGEST[:8]}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("short", "5 characters, expected at least 16"),
        ("sha256:beef", "64 hex digits"),
        (f"lab {PLAIN}", "no digest"),
        (f"the lab sha256:{DIGEST}", "no digest"),
        (f"lab sha256:{DIGEST} embed", "word 3"),
        (f"lab sha256:{DIGEST} scopes=embed scopes=qc", "word 4"),
        (f"lab sha256:{DIGEST} scopes=", "word 3"),
        (f"lab sha256:{DIGEST} scope=embed", "word 3"),
        (f"lab sha256:{DIGEST} scopes=embed,everything", "no scope is called everything"),
        (f"lab sha256:{DIGEST} expires=soon", "'soon' is no day"),
        (f"lab sha256:{DIGEST} expires=2027-13-01", "no day"),
        (f"-lab sha256:{DIGEST}", "the name of an API key"),
        (f"lab sha256:{DIGEST} {PLAIN}", "word 3"),
    ],
)
def test_a_line_that_is_no_key_is_refused_without_showing_one(text, reason):
    with pytest.raises(ValueError, match=re.escape(reason)) as error:
        parse_key(text)
    assert PLAIN not in str(error.value)
    assert DIGEST not in str(error.value)


def test_the_shown_key_is_found_among_all_and_a_digest_is_none():
    others = [new_key(f"other{i}")[1] for i in range(5)]
    mine = ApiKey(name="mine", digest=DIGEST)
    assert find_key(PLAIN, [*others, mine]) is mine
    for wrong in (PLAIN[:-1], PLAIN + "x", "", DIGEST, f"sha256:{DIGEST}", "é", "\ud800"):
        assert find_key(wrong, [*others, mine]) is None


def test_every_key_is_compared_whichever_is_right(monkeypatch):
    compared = []
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append(b) or a == b)
    known = [ApiKey(name="first", digest=DIGEST), *(new_key(f"other{i}")[1] for i in range(3))]
    find_key(PLAIN, known)
    assert len(compared) == 4


def test_a_new_key_has_32_random_bytes_and_only_its_digest_is_stored():
    plain, key = new_key("lab", ["embed"], date(2027, 1, 1))
    assert len(plain) == 43
    assert key.digest == key_digest(plain)
    assert plain not in repr(key) + key.line()
    assert new_key("lab")[0] != plain


def test_a_key_is_refused_from_its_day_on():
    key = ApiKey(name="lab", digest=DIGEST, expires=date(2027, 1, 1))
    assert not key.has_expired(date(2026, 12, 31))
    assert key.has_expired(date(2027, 1, 1))
    assert not ApiKey(name="lab", digest=DIGEST).has_expired(date(9999, 1, 1))


def test_an_error_names_the_line_of_the_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\nlab sha256:{DIGEST} scopes=embed # since May\n{PLAIN}x\n")
    assert [key.name == "lab" for key in read_keys(file)] == [True, False]
    file.write_text(f"lab sha256:{DIGEST}\nlab sha256:beef\n")
    with pytest.raises(ValueError, match=r"keys, line 2: .*64 hex digits"):
        read_keys(file)
    file.write_text(f"lab sha256:{DIGEST}\n\n{PLAIN}\n")
    with pytest.raises(ValueError, match=r"line 3: .* twice"):
        read_keys(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="Expected a text file"):
        read_keys(file)
    file.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ValueError, match="more than 1,048,576 bytes"):
        read_keys(file)


@pytest.fixture
def always_due(monkeypatch):
    """Every request may look at the file."""
    monkeypatch.setattr(keys, "CHECK_EVERY_S", 0)


class Ring:
    """A key ring over a file, and the names of its keys."""

    def __init__(self, file, text, fixed=()):
        self._file = file
        self.write(text)
        self.ring = KeyRing(fixed, str(file), read_keys(file))

    def write(self, text):
        """As an operator should: a new file in the old one's place."""
        self._file.with_suffix(".new").write_text(text)
        self._file.with_suffix(".new").replace(self._file)

    def names(self):
        return sorted(key.name for key in asyncio.run(self.ring.keys()))


def test_a_changed_file_is_followed(tmp_path, always_due):
    ring = Ring(tmp_path / "keys", f"old sha256:{DIGEST}\n", fixed=[new_key("fixed")[1]])
    assert ring.names() == ["fixed", "old"]
    new = new_key("new")[1]
    ring.write(f"old sha256:{DIGEST}\n{new.line()}\n")
    assert ring.names() == ["fixed", "new", "old"], "both at once, while callers change over"
    ring.write(f"{new.line()}\n")
    assert ring.names() == ["fixed", "new"]
    ring.write("# nobody\n")
    assert ring.names() == ["fixed"]


def test_a_broken_file_keeps_the_keys_and_is_logged_once(tmp_path, caplog, always_due):
    file = tmp_path / "keys"
    ring = Ring(file, f"lab sha256:{DIGEST}\n")
    for break_it in (lambda: ring.write("lab sha256:beef\n"), file.unlink, lambda: file.write_bytes(b"\xff")):
        caplog.clear()
        break_it()
        for _ in range(3):
            assert ring.names() == ["lab"]
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert "stay as they were" in caplog.text
    ring.write(f"lab2 sha256:{DIGEST}\n")
    assert ring.names() == ["lab2"]


def test_a_file_that_did_not_change_is_not_read_again(tmp_path, monkeypatch, always_due):
    read = []
    ring = Ring(tmp_path / "keys", f"lab sha256:{DIGEST}\n")
    monkeypatch.setattr(keys, "read_keys", lambda path: read.append(path) or read_keys(path))
    for _ in range(3):
        assert ring.names() == ["lab"]
    assert len(read) == 1


def test_many_requests_at_once_look_at_the_file_once(tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "CHECK_EVERY_S", 3600)
    looks = []
    ring = Ring(tmp_path / "keys", f"lab sha256:{DIGEST}\n").ring
    ring.check = lambda: looks.append(1)

    async def ask_often():
        await asyncio.gather(*(ring.keys() for _ in range(5)))
        await ring.keys()

    asyncio.run(ask_often())
    assert len(looks) == 1


def test_a_file_system_that_hangs_holds_up_no_more_than_one_request_and_that_shortly(tmp_path, monkeypatch, always_due):
    monkeypatch.setattr(keys, "CHECK_WAIT_S", 0.01)
    ring = Ring(tmp_path / "keys", f"lab sha256:{DIGEST}\n").ring
    goes_on = threading.Event()
    looks = []
    ring.check = lambda: looks.append(goes_on.wait(20))

    async def ask():
        names = [[key.name for key in await ring.keys()] for _ in range(3)]
        goes_on.set()
        return names

    assert asyncio.run(ask()) == [["lab"]] * 3
    assert len(looks) == 1


def test_a_line_of_the_file_limits_a_key_that_is_in_the_environment_too(tmp_path):
    (tmp_path / "keys").write_text(f"lab sha256:{DIGEST} scopes=embed\n")
    ring = KeyRing([parse_key(PLAIN)], str(tmp_path / "keys"), read_keys(tmp_path / "keys"))
    (key,) = asyncio.run(ring.keys())
    assert key.scopes == {"embed"}


def test_the_command_prints_the_key_once_and_a_line_that_the_file_takes(tmp_path):
    from cytolake.cli.main import app

    tomorrow = (date.today() + timedelta(days=1)).isoformat()
    arguments = ["keys", "new", "--name", "lab", "--scopes", "embed,search", "--expires", tomorrow]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    plain = found.stderr.split()[-1]
    (tmp_path / "keys").write_text(found.stdout)  # as with >> keys: the plain key must not get in there
    assert plain not in found.stdout
    (key,) = read_keys(tmp_path / "keys")
    assert find_key(plain, [key]) is key
    assert (key.name, key.scopes, key.expires.isoformat()) == ("lab", {"embed", "search"}, tomorrow)
    GuardConfig(keys=(key,))


@pytest.mark.parametrize("arguments", [["--name", "a b"], ["--name", "lab", "--scopes", "all"]])
def test_the_command_refuses_what_the_file_would_refuse(arguments):
    from cytolake.cli.main import app

    found = CliRunner().invoke(app, ["keys", "new", *arguments])
    assert found.exit_code == 2
    assert "sha256" not in found.stdout
