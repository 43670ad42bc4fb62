"""Kills at every file event and at random moments. The command that the docs name for this case
must then give the same result, bit for bit, as a command that was never killed."""

from faults.cases import Case, Kind, naming
from faults.victims import Fault, Place
from faults.world import World

WRITERS = ("train", "resume", "seeds", "export", "cache", "kernels", "report")
OFTEN = ("train", "train", "resume", "seeds", "export", "cache", "kernels")
IN_A_ROW = 2  # kills at random moments before a command may finish


def at_events(world: World) -> Kind:
    """A kill at every event of every command that writes.

    In every other case, the command that follows is killed too, at a random event.
    """
    moments = [(name, at) for name in WRITERS for at in range(1, world.unharmed[name].events + 1)]

    def attempt(case: Case) -> None:
        name, at = moments[case.number]
        with naming(f"{name}, event {at}"), world.place(name) as place:
            words = world.commands[name].words
            case.tried += place.sprat(*words, fault=Fault("kill", at)).killed
            if case.number % 2:
                again = Fault("kill", case.random.randint(1, world.unharmed[name].events))
                case.tried += place.sprat(*world.again(name, place), fault=again).killed
            _finish(world, name, place)

    return Kind(lambda faults: len(moments), attempt)


def at_random(world: World) -> Kind:
    """Kills after random times, FAULTS in total."""

    def attempt(case: Case) -> None:
        name = OFTEN[case.number % len(OFTEN)]
        while case.tried < IN_A_ROW:
            with naming(name), world.place(name) as place:
                words = world.commands[name].words
                while case.tried < IN_A_ROW:
                    after = case.random.uniform(0, world.unharmed[name].seconds)
                    if not place.sprat(*words, after=after).killed:
                        break
                    case.tried += 1
                    words = world.again(name, place)
                _finish(world, name, place)

    return Kind(lambda faults: -(-faults // IN_A_ROW), attempt)


def _finish(world: World, name: str, place: Place) -> None:
    ended = place.sprat(*world.again(name, place)).check(0)
    world.check_same(name, place, ended)
