"""Faults that sprat has to withstand: killed processes, damaged files, full disks, hostile input.

    make faults                                  all kinds, with 300 kills at random moments
    FAULTS=1000 FAULTS_OUTPUT=results/faults.json make faults
    PYTHONPATH=tests python -m faults "bit flipped" --only 17     one case again

Every case is determined by its kind, its number and FAULTS_SEED. It can fail in three ways:

    lost         the work cannot be completed, or its result differs from that without the fault:
                 other bits in weights or figures, stray files, a server that does not answer
    silent       damaged or hostile data was used, and the exit code is 0
    tracebacks   a command ended with a traceback, a signal or an exit code other than 0, 1 and 2

Only what determines weights and predictions is protected against damage: model.safetensors,
last.pt, the cached pixels of a user's own pictures and the compiled kernels; config.json is
compared with last.pt when a run is resumed. The other JSON files (results.json, metrics.jsonl,
summary.json) are for people and have no digest: a changed digit in them is a valid figure. Damage
to those must not cause a traceback; nothing more is promised.
"""

KINDS = {
    "killed at a file event": "killed when about to open, write, rename, flush or remove a file",
    "killed at a random moment": "killed after a random time, several times in a row",
    "disk full": "no disk space left from a given write on",
    "bit flipped": "one bit flipped in a file written by a run",
    "truncated": "file written by a run, cut off",
    "hostile model": "model file with invalid metadata or weights",
    "hostile recipe": "recipe that is not valid TOML or contains invalid values",
    "hostile folder": "folder with links, pipes, unusual names, unusual pictures or no pictures",
    "hostile table": "table with unusual text, columns, paths, labels or splits",
    "hostile archive": "archive with paths outside it, links, clashing names, bombs or damage",
    "hostile parquet": "parquet files that are damaged, disagree or have unexpected columns",
    "client that never reads": "connections that are opened and left idle, many at a time",
    "picture made to be slow": "small file that would take long or much memory to decode",
}
