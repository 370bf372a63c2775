"""Behaviours of `World` on 4 ranks: `world_program.py BEHAVIOUR`. Run under mpirun."""

import sys
import time

from mpi4py import MPI

from distsage.errors import UserError
from distsage.launch import preflight
from distsage.launch.world import World


def refuse(world: World, ranks: set[int], sentence: str) -> None:
    if world.rank in ranks:
        raise UserError(sentence)


def main(behaviour: str) -> None:
    world = World(MPI.COMM_WORLD, 60.0, lambda doing, state: None)
    world.gather_all("up", None)  # importing may take longer than the bound
    world.timeout = 3.0
    preflight.release_mpich_segments()  # as every job does, so that it may be aborted
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
    if behaviour == "slow":
        # Two ranks, rank 0 among them or not, need many times the timeout and get on.
        for slow in ({0, 3}, {1, 2}):
            if world.rank in slow:
                for step in range(12):
                    time.sleep(1.0)
                    world.progress(f"step {step}")
            assert world.gather_all("slow", world.rank) == [0, 1, 2, 3]
    if behaviour == "slow, then stuck":
        if world.rank == 2:
            for step in range(6):
                time.sleep(1.0)
                world.progress(f"step {step}")
            time.sleep(60)
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
