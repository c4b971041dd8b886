"""Makes the sweeper of `atlas` known to Hydra, which takes plugins from this namespace only."""

from atlas.sweeps.sweeper import ResumableSweeper


class AtlasSweeper(ResumableSweeper):
    """Chosen by conf/hydra/sweeper/atlas.yaml."""
