"""Units of work: neighbouring documents that one worker tokenises, and that become one part of the store.

Their borders depend on the sources alone, so that a preparation that goes on makes the store of one that never stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from atlas.config import ConfigError
from atlas.preparation.compression import SourceError
from atlas.preparation.readers import Raw, read_source
from atlas.preparation.settings import OnError, PrepareSettings
from atlas.preparation.sources import Source

LARGEST_UNIT = 32 << 20  # bytes
SMALLEST_UNIT = 256 << 10
UNITS = 64  # of a store that is neither small nor large
COST_BYTES = 16  # of a document, whatever its length, so that empty ones end a unit too


@dataclass(frozen=True)
class Place:
    """Between two documents: so many documents of the source with this index have been read."""

    source: int
    documents: int


@dataclass
class Unit:
    """Documents `documents[i]` = (index of the source, number in it from 1, the document)."""

    index: int
    documents: list[tuple[int, int, Raw]] = field(default_factory=list)
    end: Place = Place(0, 0)
    read: float = 0.0  # bytes of all sources up to its end
    skipped: list[str] = field(default_factory=list)  # with on_error=skip: sources whose rest could not be read


def unit_bytes(sources: Sequence[Source]) -> int:
    """Bytes of text in a unit. The hub does not tell the size of its data sets."""
    total = sum(source.size for source in sources) if all(source.size for source in sources) else LARGEST_UNIT * UNITS
    return min(max(total // UNITS, SMALLEST_UNIT), LARGEST_UNIT)


def units(
    sources: Sequence[Source], settings: PrepareSettings, size: int, first: int = 0, start: Place = Place(0, 0)
) -> Iterator[Unit]:
    """The units from number `first` on, which begins at `start`. Raises `ConfigError` naming the source."""
    unit, held = Unit(first), 0
    before = float(sum(source.size for source in sources[: start.source]))
    for index in range(start.source, len(sources)):
        source = sources[index]
        skip = start.documents if index == start.source else 0
        try:
            for number, (document, share) in enumerate(read_source(source, settings), 1):
                if number <= skip:
                    continue
                unit.documents.append((index, number, document))
                held += COST_BYTES + (len(document) if document else 0)
                if held >= size:
                    unit.end, unit.read = Place(index, number), before + share * source.size
                    yield unit
                    unit, held = Unit(unit.index + 1), 0
        except SourceError as error:
            if settings.on_error is OnError.refuse:
                allowed = f"readable; {source.name!r} {error} (on_error=skip leaves the rest of it out)"
                raise ConfigError(f"SOURCE={source.name}: must be {allowed}") from error
            unit.skipped.append(f"the rest of {source.name!r} {error}")
        before += source.size
        unit.end, unit.read = Place(index + 1, 0), before  # a source that broke off is not read, and told, once more
    if unit.documents or unit.skipped:
        yield unit
