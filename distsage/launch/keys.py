"""Keys of a job, all from its one secret: each protects one thing, and none tells another."""

import hmac


def derive_key(secret: bytes, purpose: str, context: bytes = b"") -> bytes:
    """The 32-byte key for `purpose` in `context` (HMAC-SHA256, as in HKDF's second step).

    Who knows it learns nothing of the secret, nor of the key for another purpose.
    """
    return hmac.digest(secret, f"distsage {purpose}".encode() + b"\0" + context, "sha256")
