"""Training: an optimiser step, the loop around it, and what a run measures, saves and notices on the way.

the step          step, micro_step, losses, step_result; carried_rows; compiled and step_graph only make it faster
its batches       batch_ahead
the optimiser     optimizer, muon, sliced_muon, weight_average; stage2: chunks and clip of each step
the loop          trainer, observed_step (a step with all that is read around it), measurements (between two steps)
measurements      evaluation, evaluating, samples, calibration, reset_shock, memory_norms, update_ratio, own_metrics
state             state, rng, saving
ends of a run     early_stop, stop, errors
time              clocks, regions, profile
the run's health  rollback/: readings, the rule, recovery; gate_monitor; faults: rehearsed ones
watchers/         quiet failures: `watchers.py` records and asks, the others measure or judge
"""
