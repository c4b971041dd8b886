"""Documents -> a token store, once, so that training only maps it into memory. The command is `atlas/prepare.py`."""
