"""Reuse of memory by maps that are needed one after another."""


def fewest_buffers(reads: list[set[int]]) -> list[int]:
    """Return the buffer that each step writes its map to: the first one with no map that is still
    needed. Step i writes map i and reads the maps `reads[i]`; negative numbers stand for none.

    A step never writes to a buffer it reads. A map that no step reads is free at once.
    """
    last_read = {read: reader for reader, maps in enumerate(reads) for read in maps}
    buffers: list[int] = []
    for step in range(len(reads)):
        taken = {buffer for i, buffer in enumerate(buffers) if last_read.get(i, i) >= step}
        buffers.append(next(b for b in range(step + 1) if b not in taken))
    return buffers
