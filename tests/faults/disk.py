"""A disk that is full from some write on: the command exits with code 2 and says so, and leaves
nothing half-written. With space again, the command that the docs name gives the usual result."""

import random

from faults.cases import Case, FailedError, Kind, naming
from faults.kills import WRITERS
from faults.victims import Fault
from faults.world import World, listing


def full(world: World) -> Kind:
    """A full disk at every write of every command that writes, but at most FAULTS of them."""
    moments = [(name, at) for name in WRITERS for at in range(1, world.unharmed[name].writes + 1)]
    random.Random(0).shuffle(moments)  # otherwise FAULTS of them could all be from one command

    def attempt(case: Case) -> None:
        name, at = moments[case.number]
        case.tried += 1
        with naming(f"{name}, write {at}"), world.place(name) as place:
            ended = place.sprat(*world.commands[name].words, fault=Fault("full", at)).check(0, 2)
            if ended.code == 2 and "space" not in ended.err:
                raise FailedError("lost", f"the error does not mention the full disk: {ended}")
            left = listing(place.folder) - listing(world.unharmed[name].folder)
            if left:
                raise FailedError("lost", f"files left behind on the full disk: {sorted(left)}")
            ended = place.sprat(*world.again(name, place)).check(0)
            world.check_same(name, place, ended)

    return Kind(lambda faults: min(faults, len(moments)), attempt)
