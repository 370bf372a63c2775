"""Keys of a job, all from its one secret: each protects one thing, and none tells another."""

import hmac


def derive_key(secret: bytes, purpose: str) -> bytes:
    """The 32-byte key for `purpose` (HMAC-SHA256).

    Who knows it learns nothing of the secret, nor of the key for another purpose.
    """
    return hmac.digest(secret, purpose.encode(), "sha256")
