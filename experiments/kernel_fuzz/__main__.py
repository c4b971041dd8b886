"""Compiled kernels compared with PyTorch's operations on random inputs.

python -m experiments.kernel_fuzz [KEY=VALUE ...]

  cases=10000          cases to try; a hundred take some seconds
  seed=0               of the random numbers
  first=0              number of the first case: seed=S first=N cases=1 repeats case N
  sanitizers=false     true: the kernels are compiled with the address and undefined-behaviour sanitizers (GCC), which
                       is slower

Prints how the cases ended and every wrong one; writes no file. Exit status: 0 clean, 1 not, 2 refused.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import dataclass

from atlas.config import ConfigError, Kernels, require
from atlas.config.arguments import read_settings, run_command
from atlas.kernels import compiler
from atlas.kernels.library import use
from experiments.kernel_fuzz.cases import WrongError, run_case

SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
INSIDE = "ATLAS_FUZZ_SANITIZED"


@dataclass(frozen=True)
class Options:
    cases: int = 10_000
    seed: int = 0
    first: int = 0
    sanitizers: str = "false"

    def __post_init__(self) -> None:
        require(self.cases > 0, "cases", self.cases, "at least 1")
        require(self.first >= 0, "first", self.first, "at least 0")
        require(self.sanitizers in ("true", "false"), "sanitizers", self.sanitizers, "true or false")


def main(arguments: list[str]) -> int:
    options = read_settings(Options, arguments)
    if options.sanitizers == "true" and INSIDE not in os.environ:
        return _sanitized(arguments)
    use(Kernels.compiled)
    warnings.simplefilter("ignore")
    outcomes: Counter[str] = Counter()
    wrong = 0
    for number in range(options.first, options.first + options.cases):
        print(f"\rcase {number} ", end="", file=sys.stderr, flush=True)
        try:
            outcomes[run_case(options.seed, number)] += 1
        except WrongError as error:
            wrong += 1
            print(f"\ncase {number}: {error}", flush=True)
    print(file=sys.stderr)
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:7} {outcome}")
    print(f"{options.cases} cases, {wrong} wrong, sanitizers={options.sanitizers}, seed={options.seed}")
    return int(wrong > 0)


def _sanitized(arguments: list[str]) -> int:
    """The same in a process of its own, with a library that checks every access to memory."""
    name = os.environ.get("CXX") or "g++"
    os.environ["CXX"] = f"{name} {SANITIZERS}"
    try:
        compiler.build()
    except compiler.CompileError as error:
        raise ConfigError(f"sanitizers=true: {error}") from error
    # The C++ library too: libasan looks for its functions when it is loaded.
    files = [[*shlex.split(name), f"-print-file-name={file}"] for file in ("libasan.so", "libstdc++.so")]
    preload = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for command in files]
    environment = {
        **os.environ,
        INSIDE: "1",
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = subprocess.run([sys.executable, "-m", "experiments.kernel_fuzz", *arguments], env=environment)
    return int(done.returncode != 0)


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
