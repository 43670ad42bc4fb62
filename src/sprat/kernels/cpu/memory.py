"""Memory that several maps use one after another."""


def fewest_buffers(reads: list[set[int]]) -> list[int]:
    """Return the number of the buffer that each step writes its map to: the first that holds no map
    still to be read. Step i makes map i and reads the maps `reads[i]`; what is below 0 is none.

    A step never writes where it reads. Maps that no step reads are taken to be free at once.
    """
    last_read = {read: reader for reader, maps in enumerate(reads) for read in maps}
    buffers: list[int] = []
    for step in range(len(reads)):
        taken = {buffer for i, buffer in enumerate(buffers) if last_read.get(i, i) >= step}
        buffers.append(next(b for b in range(step + 1) if b not in taken))
    return buffers
