"""Makes the sweepers of `atlas` known to Hydra, which takes plugins from this namespace only."""

from atlas.sweeps.search import SearchSweeper
from atlas.sweeps.sweeper import ResumableSweeper


class AtlasSweeper(ResumableSweeper):
    """Chosen by conf/hydra/sweeper/atlas.yaml."""


class AtlasSearch(SearchSweeper):
    """Chosen by conf/hydra/sweeper/optuna.yaml."""
