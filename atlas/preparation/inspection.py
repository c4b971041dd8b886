"""What a store holds, for its owner."""

from __future__ import annotations

from pathlib import Path

from atlas.config.untrusted import printable
from atlas.data.store import TokenStore
from atlas.data.store_corpus import short_documents
from atlas.data.store_format import SPLITS, StoreRecord

SHOWN_TOKENS = 60


def store_lines(folder: Path, record: StoreRecord) -> list[str]:
    """Its counts."""
    lines = [f"store      {folder}", f"tokenizer  {record.tokenizer}, {record.vocabulary} ids ({record.dtype})"]
    for split in SPLITS:
        one = record.splits[split]
        lines.append(f"{split:<10} {one.tokens:,} tokens, {one.documents:,} documents, {one.bytes:,} bytes of text")
    lines.append(f"           {record.bytes_per_token:.2f} bytes per token")
    if record.lost_characters is not None:
        lines.append(
            f"lost       {record.lost_characters:.2%} of the characters, which the tokenizer does not give back"
        )
    lines.append(f"duplicates {record.duplicates:,} documents that equal an earlier one (all copies in one part)")
    lines.append(f"shared     {record.validation_in_training:.1%} of the validation text stands in training as well")
    lines += [f"           {line}" for line in short_documents(TokenStore(folder, "out"))]
    left_out = f"left out   {record.skipped_count:,} documents that could not be read, {record.empty:,} empty ones"
    return [*lines, left_out, *(f"           {place}" for place in record.skipped)]


def inspect_store(folder: Path) -> list[str]:
    """Its counts, and three documents: the first, one in the middle and the last. Raises `ConfigError`."""
    store = TokenStore(folder, "--inspect")
    tokenizer = store.tokenizer()
    lines = store_lines(folder, store.record)
    count = len(store.train.ends)
    for number in sorted({0, count // 2, count - 1}):
        ids = store.train.document(number)
        text = tokenizer.decode([int(one) for one in ids[:SHOWN_TOKENS]])
        lines += ["", f"document {number + 1} of {count}, {len(ids)} tokens:", printable(text)]
    return lines


def verify_store(folder: Path) -> list[str]:
    """A line that says that all is as it was written. Raises `ConfigError` for the first file that is not."""
    store = TokenStore(folder, "--verify")
    store.verify()
    return [f"{folder}: all is as it was written"]
