"""How fast is atlas? Training steps and decoding, beside a plain Transformer and titans-pytorch.

python -m experiments.speed [KEY=VALUE ...]

  parts=whole,contexts,branch,decode,titans    what is measured; a part replaces only its own figures
  contestants=gd_c16,transformer,...           by default each part's own
  device=cpu  model=small  threads=0           cuda; an option of conf/model with a memory; 0 = torch's own choice
  rounds=5                                     timed steps of each contestant
  batch=2  sequence=0                          shape of a step of `whole` and `titans`; 0 = what the model is made for
  contexts=  tokens=0                          lengths, and tokens of a step, of `contexts` and `branch`
  folder=experiments/speed                     where the results go
  compile=false                                true: blocks by torch.compile, of all contestants
  quick=true                                   fewer rounds, contestants and parts

Prints its tables; writes results-DEVICE-MODEL.json, its chart and RESULTS.md. The machine should do nothing else.
quick=true takes about a minute, all parts far longer. README.md explains every key and every table. Exit status: 0
done, 2 refused.
"""

from __future__ import annotations

import os
import sys

import torch

from atlas.config import DeviceConfig, DeviceKind, require
from atlas.config.arguments import run_command
from atlas.runs.allocator import keep_freed_memory
from atlas.runs.build import prepare_device
from experiments.speed.chart import draw
from experiments.speed.entries import check_entries
from experiments.speed.options import Options, parse
from experiments.speed.parts import PARTS
from experiments.speed.results import circumstances, load_results, save_part
from experiments.speed.tables import document, measured_tables


def main(arguments: list[str]) -> int:
    """The command line."""
    return run_command(measure, arguments, __doc__ or "")


def measure(arguments: list[str]) -> int:
    """Raises `ConfigError` for an argument that cannot be used."""
    options = parse(arguments)
    device = usable_device(options)
    check_entries(options)
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
    if options.device == "cuda":
        prepare_device(DeviceConfig(kind=DeviceKind.cuda))  # products and attention as in a run
    if options.threads:
        torch.set_num_threads(options.threads)
    return torch.device(options.device)


def write(options: Options) -> None:
    """RESULTS.md and the charts, from all files of results in the folder; prints the tables that are new."""
    results = load_results(options.folder)
    for one in results:
        draw(one, options.folder / f"chart-{one['device']}-{one['model']}.svg")
        if (one["device"], one["model"]) == (options.device, options.model):
            print(f"\n{measured_tables(one, options.parts)}\n")
    (options.folder / "RESULTS.md").write_text(document(results), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
