"""One run from configuration to summary.

the run           run, build, folder, signals, finish, summary, closing_table
where it starts   start, resume, changes (of a continued run), slicing
before step 1     plan, step_memory, self_test, ready_kernels
its notices       notices; recall_warnings, steady_data and unread_settings are a part of them
processes         processes, torchrun
the machine       environment, allocator, peak_flops, spinning, time_slice
its records       data_record, own_code, probe_record, evaluation_record: one JSON file of the run folder each
comparisons       known_text, baselines
a trained model   load
"""
