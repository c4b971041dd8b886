"""A sweep: many runs of one command, which survives what fails in it and can be resumed.

Hydra composes the jobs and its launchers start them. This package keeps the record of them (sweep.json), leaves out
what is complete, stops in good order and tells at the end what became of each job.
"""
