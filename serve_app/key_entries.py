"""Entries of `auth.keys` and of the keys file: what a line says, without the secret itself."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

ENTRY = re.compile(r"(?:(?P<name>[A-Za-z0-9][A-Za-z0-9._@-]{0,63}):\s+)?(?P<secret>\S.*)")
"""`NAME: SECRET`, or the secret alone."""

HASHED = "sha256:"
"""Prefix of a secret that is given as the hexadecimal SHA-256 digest of its UTF-8 bytes."""


@dataclass(frozen=True, slots=True)
class Key:
    """An API key."""

    name: str
    """Of its owner; several keys may have the same."""
    digest: bytes
    """SHA-256 of the secret."""


def parse(entries: Iterable[str]) -> tuple[Key, ...]:
    """The keys of some entries. Raises ValueError, with a message that shows no secret."""
    keys = tuple(_parsed(number, entry.strip()) for number, entry in enumerate(entries, 1))
    owners: dict[bytes, str] = {}
    for key in keys:
        if owners.setdefault(key.digest, key.name) != key.name:
            raise ValueError(f"`{owners[key.digest]}` and `{key.name}` have the same key")
    return keys


def _parsed(number: int, entry: str) -> Key:
    """The key of an entry. One without a name is named after the first characters of its digest."""
    match = ENTRY.fullmatch(entry)
    if match is None:
        raise ValueError(f"key {number} is empty")
    secret = match["secret"]
    if secret.startswith(HASHED):
        try:
            digest = bytes.fromhex(secret.removeprefix(HASHED))
        except ValueError:
            digest = b""
        if len(digest) != hashlib.sha256().digest_size:
            raise ValueError(f"key {number} is not `{HASHED}` and 64 hexadecimal digits")
    else:
        digest = digest_of(secret.encode())
    return Key(match["name"] or f"key-{digest.hex()[:8]}", digest)


def digest_of(secret: bytes) -> bytes:
    """SHA-256 of a secret."""
    return hashlib.sha256(secret).digest()
