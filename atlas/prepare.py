r"""Turn text into a token store, once: `python -m atlas.prepare SOURCE... out=DIR [KEY=VALUE ...]`.

A SOURCE is a file, a pattern such as "**/*.md", a folder, a folder saved by `datasets`, or hub:OWNER/NAME[:SUBSET].
Files of text, .jsonl and .parquet are read, also as .gz and .zst. `data=tokens data.path=DIR` trains on the store.

  out=DIR                          the store; it appears there when it is complete
  tokenizer=bytes                  bytes, the path of a tokenizer.json, or train:8192 (byte-level BPE of so many ids)
  end_of_document=TOKEN            of a tokenizer.json, where it is none of the usual ones
  field=text                       the field of JSONL, the column of Parquet and datasets
  format=auto                      auto (by the file's name), text, jsonl or parquet
  separator=TEXT                   cuts text into documents, such as "<|endoftext|>" or '\n\n'; without, a file is one
  split=train                      of a data set that has several
  validation_share=0.01            of the documents, by a hash of their text
  on_error=refuse                  refuse, or skip: documents that cannot be read are left out and counted
  workers=0                        processes; 0 is one per core

  python -m atlas.prepare --inspect DIR       what a store holds, with three of its documents
  python -m atlas.prepare --verify DIR        reads all of a store and compares its hashes

A command that was killed goes on where it stopped when it is given again.
Exit status: 0 done, 1 the disk is full or a process was killed, 2 refused, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields

from atlas.config import require
from atlas.config.arguments import read_settings, run_command
from atlas.config.console import OutputError, print_result, progress
from atlas.config.path_overrides import expanded
from atlas.config.untrusted import printable
from atlas.preparation.inspection import inspect_store, store_lines, verify_store
from atlas.preparation.preparation import prepare
from atlas.preparation.settings import PrepareSettings

USAGE = "python -m atlas.prepare SOURCE... out=DIR [KEY=VALUE ...]"
LOOKS = {"--inspect": inspect_store, "--verify": verify_store}
KEYS = frozenset(field.name for field in fields(PrepareSettings)) - {"sources"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    stopped = "stopped; the same command goes on where it stopped"
    try:
        return run_command(_work, arguments, f"{USAGE}\n\n{__doc__}", stopped)
    except OutputError:
        raise
    except (OSError, BrokenProcessPool) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        print(printable(f"atlas: stopped: {reason}; the same command goes on where it stopped"), file=sys.stderr)
        return 1


def _work(arguments: Sequence[str]) -> int:
    for flag, look in LOOKS.items():
        if flag in arguments:
            folders = [argument for argument in arguments if argument != flag]
            require(
                len(folders) == 1, flag, " ".join(folders), f"given with one store: python -m atlas.prepare {flag} DIR"
            )
            print_result("\n".join(look(expanded(folders[0]))))
            return 0
    sources = [argument for argument in arguments if _is_source(argument)]
    others = [argument for argument in arguments if not _is_source(argument)]
    settings = read_settings(PrepareSettings, others, sources=sources)
    with progress():
        record, notes = prepare(settings)
    for note in notes:
        print(printable(f"atlas: {note}"), file=sys.stderr)
    print_result("\n".join(store_lines(settings.folder, record)))
    return 0


def _is_source(argument: str) -> bool:
    key, equals, _ = argument.partition("=")
    return not equals or (key not in KEYS and "/" in key)


if __name__ == "__main__":
    sys.exit(main())
