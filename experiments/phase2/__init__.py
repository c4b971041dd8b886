"""The exit gate of Phase 2 and its two decision rules; README.md says what each check asks.

`gate` and `decide` are the commands. `evidence` starts runs and judges nothing; the `check_*` modules judge what runs
left behind and start nothing. `chunk_sizes` and `probe_frequency` hold one decision rule each.
"""
