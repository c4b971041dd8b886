"""Command lines of runs that take a second."""

MODEL = [
    "model.width=32",
    "model.layers=1",
    "model.heads=2",
    "model.feedforward=32",
    "model.memory.hidden=8",
    "model.persistent_keys=4",
    "model.window=8",
]
RUN = [
    *MODEL,
    "train.sequence=64",
    "chunk_size.shard=32",
    "chunk_size.global_size=32",
    "chunk_size.local=[8]",
    "data=text",
    "optim=adamw",
    "optim.warmup=5",
    "train.steps=30",
    "train.batch_size=4",
    "train.validation_every=10",
    "train.validation_batches=1",
    "train.gate.monitor=off",
    "checkpoint.every=10",
    "telemetry.every=5",
    "rollback.warmup=10",
    "rollback.watch_every=5",
    "rollback.suspect_every=1",
    "niah=off",
    "logger=none",
    "device=cpu",
    "device.threads=1",
]
JOB = [
    *RUN,
    "train.steps=4",
    "train.batch_size=2",
    "train.validation_every=2",
    "checkpoint.every=2",
    "telemetry.every=1",
    "calibration=off",
]
