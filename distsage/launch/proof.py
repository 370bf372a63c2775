"""Trainers prove to each other who they are. Runs on trainer ranks.

gloo takes whoever connects first and says the number of a connection, a small one: a stranger can
take the place of a trainer in the moment in which the trainers connect to each other.
"""

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed

from distsage.launch.keys import derive_key

# All have connected by now. A trainer answers at once, on a busy host within seconds.
_SECONDS = 60.0


def prove_trainers(secret: bytes, names: Sequence[str], seconds: float = _SECONDS) -> None:
    """See that a trainer is at the other end of each of gloo's connections. Collective.

    Every trainer sends every other one an HMAC of both their numbers, which only the ranks of the
    job can make, and which is good for this direction of this connection only.

    Args:
        secret: of the job.
        names: of the trainers, by number.
        seconds: that each of them has.

    Raises:
        ConnectionError: somebody else is there, or nobody.
    """
    own = torch.distributed.get_rank()
    key = derive_key(secret, "gloo")
    others = [number for number in range(len(names)) if number != own]
    proofs = {number: torch.empty(32, dtype=torch.uint8) for number in others}
    coming = {number: torch.distributed.irecv(proofs[number], number) for number in others}
    going = [
        torch.distributed.isend(_proof(key, sender=own, receiver=number), number)
        for number in others
    ]
    for number, work in coming.items():
        problem = (
            f"{names[number]} has not proven itself on the connection that gloo has to it; a "
            "stranger may have taken its place: start the job again"
        )
        assert work is not None, "every trainer belongs to the group"
        try:
            work.wait(timedelta(seconds=seconds))
        except RuntimeError as error:
            raise ConnectionError(problem) from error
        if not torch.equal(proofs[number], _proof(key, sender=number, receiver=own)):
            raise ConnectionError(problem)
    for sent in going:
        assert sent is not None
        sent.wait(timedelta(seconds=seconds))


def _proof(key: bytes, *, sender: int, receiver: int) -> torch.Tensor:
    """uint8 `[32]`."""
    proof = derive_key(key, "proof", f"{sender} {receiver}".encode())
    return torch.frombuffer(bytearray(proof), dtype=torch.uint8)
