"""The exit gate of Phase 2: evidence is gathered by real runs, and judged by pure functions.

`judge_*` take what runs left behind, start nothing and give a `Finding`; `Evidence` starts runs and judges nothing.
"""
