"""Behaviours of `World` on 4 ranks: `world_program.py BEHAVIOUR`. Run under mpirun."""

import sys
import time

from mpi4py import MPI

from distsage.errors import UserError
from distsage.launch.world import World


def refuse(world: World, ranks: set[int], sentence: str) -> None:
    if world.rank in ranks:
        raise UserError(sentence)


def main(behaviour: str) -> None:
    world = World(MPI.COMM_WORLD, timeout=3.0)
    if behaviour == "values":
        for turn in range(20):
            assert world.gather_all("turn", (turn, world.rank)) == [(turn, r) for r in range(4)]
            assert world.broadcast("turn", turn if world.rank == 0 else None) == turn
            assert world.agree("turn", lambda turn=turn: turn + world.rank) == turn + world.rank
        large = world.gather_all("large", bytes(3_000_000))
        assert [len(piece) for piece in large] == [3_000_000] * 4
    world.host_of = ["a", "a", "b", "b"]
    if behaviour == "missing":
        if world.rank == 2:
            time.sleep(30)
        try:
            world.gather_all("hosts", None)
        except TimeoutError as error:
            print(f"[{world.rank}] {error}", flush=True)
            MPI.COMM_WORLD.Abort(3)
    if behaviour == "one host":
        world.agree("room", lambda: refuse(world, {2, 3}, "too little; free some"))
    if behaviour == "all":
        world.agree("room", lambda: refuse(world, {0, 1, 2, 3}, "too little; free some"))


if __name__ == "__main__":
    main(sys.argv[1])
