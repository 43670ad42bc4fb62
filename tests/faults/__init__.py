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
    "killed at a file event": "killed before a file is opened, written, renamed, flushed, removed",
    "killed at a random moment": "killed after a random time, several times in a row",
    "disk full": "no space left from some write on",
    "bit flipped": "one bit changed in a file that a run wrote",
    "truncated": "a file that a run wrote is cut off",
    "hostile model": "a model file whose metadata or weights are impossible",
    "hostile recipe": "a recipe that is no TOML, or whose values are impossible",
    "hostile folder": "own pictures in folders with links, pipes, odd names, odd pictures or none",
    "hostile table": "a table with odd texts, columns, paths, labels or parts",
    "hostile archive": "an archive with paths outside, links, clashing names, bombs or damage",
    "hostile parquet": "parquet files of another shape, or that disagree, or damaged",
    "client that never reads": "connections that are opened and then left, up to every place",
    "picture made to be slow": "a small file that would take long, or much memory, to decode",
}
