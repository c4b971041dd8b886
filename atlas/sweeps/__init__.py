"""A sweep: many runs of one command. It survives failing jobs and can be resumed.

Hydra composes the jobs and its launchers start them. This package records them in sweep.json, skips completed jobs,
stops in good order and reports at the end how each job ended.
"""
