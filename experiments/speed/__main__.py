"""How fast is atlas? python -m experiments.speed [key=value ...]

`quick=true` takes about a minute. README.md explains every key and every table.
"""

from __future__ import annotations

import os
import sys

import torch

from atlas.config import ConfigError, require
from atlas.runs.allocator import keep_freed_memory
from experiments.speed.chart import draw
from experiments.speed.entries import check_entries
from experiments.speed.options import Options, parse
from experiments.speed.parts import PARTS
from experiments.speed.results import circumstances, load_results, save_part
from experiments.speed.tables import document


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 2 an argument that cannot be used."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        options = parse(arguments)
        device = usable_device(options)
        check_entries(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    for part in options.parts:
        print(f"{part}:", flush=True)
        at = circumstances(device, arguments)
        found = PARTS[part](options, device)
        at["load_after"] = round(os.getloadavg()[0], 2)
        save_part(options, part, {"circumstances": at, **found})
    write(options)
    print(f"written to {options.folder / 'RESULTS.md'}")
    return 0


def usable_device(options: Options) -> torch.device:
    """The device, with its threads set. Raises `ConfigError` for `cuda` without a GPU."""
    keep_freed_memory()  # as a run does: contestants of different sizes would disturb each other
    available = torch.cuda.is_available()
    require(options.device != "cuda" or available, "device", options.device, "cpu: no GPU was found")
    if options.threads:
        torch.set_num_threads(options.threads)
    return torch.device(options.device)


def write(options: Options) -> None:
    """RESULTS.md and the charts, from all files of results in the folder."""
    results = load_results(options.folder)
    for one in results:
        draw(one, options.folder / f"chart-{one['device']}-{one['model']}.svg")
    (options.folder / "RESULTS.md").write_text(document(results), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
