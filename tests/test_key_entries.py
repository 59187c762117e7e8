"""Entries of keys: names, hashes, and errors that show no secret."""

import hashlib

import pytest

from serve_app.key_entries import parse

HEX = hashlib.sha256(b"secret").hexdigest()


@pytest.mark.parametrize(
    ("entry", "name", "secret"),
    [
        ("secret", f"key-{HEX[:8]}", "secret"),
        ("alice: secret", "alice", "secret"),
        ("alice:   secret ", "alice", "secret"),
        (f"alice: sha256:{HEX}", "alice", "secret"),
        (f"sha256:{HEX.upper()}", f"key-{HEX[:8]}", "secret"),
        ("alice@example.org: two words", "alice@example.org", "two words"),
        ("alice:secret", None, "alice:secret"),
        ("no name: secret", None, "no name: secret"),
        ("schlüssel-é", None, "schlüssel-é"),
    ],
)
def test_an_entry(entry: str, name: str | None, secret: str) -> None:
    (key,) = parse([entry])
    digest = hashlib.sha256(secret.encode())
    assert key.digest == digest.digest()
    assert key.name == (name or f"key-{digest.hexdigest()[:8]}")


def test_two_secrets_may_have_one_name_and_one_secret_may_come_twice() -> None:
    assert [key.name for key in parse(["alice: old", "alice: new", "bob: x", "bob: x"])] == ["alice", "alice", "bob", "bob"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([" "], "key 1 is empty"),
        (["secret", "alice: sha256:5ec2e7"], "key 2 is not `sha256:` and 64 hexadecimal digits"),
        (["alice: sha256:secret-that-is-no-hash"], "key 1 is not"),
        (["alice: secret", "bob: secret"], "`alice` and `bob` have the same key"),
    ],
)
def test_an_invalid_entry(entries: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(entries)
    assert "secret" not in str(caught.value)
    assert "5ec2e7" not in str(caught.value)
