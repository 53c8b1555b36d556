"""The dataset port over local files and folders, fsspec URLs and the Hugging Face hub.

JSON is read by this package, strictly, since only so can a broken line be named; CSV by Python's reader, Parquet by
pyarrow, batch by batch; hub ids by ``datasets``, memory-mapped.
"""

import csv
import difflib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet

from crucible_train import files
from crucible_train.adapters.row_store.json_rows import json_document, json_lines
from crucible_train.errors import DataError
from crucible_train.ports import SourceInfo, SourceRow

_HASH_BLOCK_BYTES = 1 << 20
_PACKINGS = (".gz", ".bz2", ".xz", ".zst", ".lzma")


def _csv_rows(delimiter: str) -> Callable[[IO[bytes], str], Iterator[SourceRow]]:
    def read(file: IO[bytes], name: str) -> Iterator[SourceRow]:
        lines = (_decoded(raw) for raw in file)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                return
            header[0] = header[0].removeprefix("\ufeff")
            for values in reader:
                where = f"{name}:{reader.line_num}"
                if len(values) != len(header):
                    problem = f"{len(values)} values stand under {len(header)} columns"
                    yield SourceRow(where, None, problem, delimiter.join(values)[:40])
                elif any("\udc80" <= character <= "\udcff" for value in values for character in value):
                    yield SourceRow(where, None, "not UTF-8", None)
                else:
                    yield SourceRow(where, dict(zip(header, values, strict=True)))
        except csv.Error as error:
            yield SourceRow(f"{name}:{reader.line_num}", None, f"broken CSV: {error}")

    return read


def _parquet_rows(file: IO[bytes], name: str) -> Iterator[SourceRow]:
    try:
        table = pyarrow.parquet.ParquetFile(file)
        number = 0
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield SourceRow(f"{name} row {number}", row)
    except (pa.ArrowException, OSError) as error:
        yield SourceRow(name, None, f"not a Parquet file: {str(error).splitlines()[0]}")


_READERS: dict[str, Callable[[IO[bytes], str], Iterator[SourceRow]]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": json_document,
    ".csv": _csv_rows(","),
    ".tsv": _csv_rows("\t"),
    ".parquet": _parquet_rows,
}


class RowStore:
    """Finds data sets and reads their rows."""

    def describe(self, source: str) -> SourceInfo:
        """Find a data set and digest its files, or, on the hub, its content.

        Raises:
            DataError: there is nothing there, or nothing that can be read.
        """
        if not self._is_files(source):
            dataset = _hub_dataset(source)
            digest = files.sha256_json([source, str(dataset._fingerprint)])  # noqa: SLF001 - its only content digest
            return SourceInfo(source, digest, (source,), int(dataset.data.nbytes))
        found = self._find(source)
        digests = [(name, *_digest(url)) for name, url in found]
        size = sum(num_bytes for *_, num_bytes in digests)
        digest = files.sha256_json([(PurePosixPath(name).name, sha256) for name, sha256, _ in digests])
        return SourceInfo(source, digest, tuple(name for name, _ in found), size)

    def rows(self, source: str) -> Iterator[SourceRow]:
        """The rows of a data set, in order.

        Raises:
            DataError: there is nothing there, or nothing that can be read.
        """
        if not self._is_files(source):
            for number, row in enumerate(_hub_dataset(source), start=1):
                yield SourceRow(f"{source} row {number}", row)
            return
        for name, url in self._find(source):
            with fsspec.open(url, "rb", compression="infer") as file:
                try:
                    yield from _READERS[_extension(name)](file, name)
                except (OSError, EOFError) as error:
                    yield SourceRow(name, None, f"the file could not be read to its end: {error}")

    def _is_files(self, source: str) -> bool:
        """Whether the source is a path or a URL; else it is a hub id."""
        if "://" in source or Path(source).expanduser().exists():
            return True
        looks_like_path = source.startswith((".", "/", "~")) or _extension(source) in _READERS or source.count("/") > 1
        if looks_like_path:
            raise DataError(f"dataset: {source}: there is no such file or folder{_nearest(Path(source).expanduser())}")
        return False

    def _find(self, source: str) -> list[tuple[str, str]]:
        """The files of a source: how each is called in messages, and the URL to open."""
        path = source if "://" in source else str(Path(source).expanduser())
        try:
            filesystem, root = fsspec.core.url_to_fs(path)
            filesystem.invalidate_cache()
            is_there, is_folder = filesystem.exists(root), filesystem.isdir(root)
            names = sorted(filesystem.find(root)) if is_folder else []
        except (OSError, ValueError, ImportError) as error:
            raise DataError(f"dataset: {source}: {str(error).splitlines()[0]}") from error
        if not is_there:
            raise DataError(f"dataset: {source}: there is no such file or folder")
        if not is_folder:
            if _extension(root) not in _READERS:
                raise DataError(f"dataset: {source}: files of this kind are not read; {_kinds()}")
            return [(source, path)]
        readable = [
            name
            for name in names
            if _extension(name) in _READERS and not PurePosixPath(name).name.startswith((".", "_"))
        ]
        if not readable:
            found = ", ".join(PurePosixPath(name).name for name in names[:5]) or "nothing"
            raise DataError(f"dataset: {source}: the folder holds {found}; {_kinds()}")
        kinds = {_extension(name) for name in readable}
        if len(kinds) > 1:
            raise DataError(
                f"dataset: {source}: the folder mixes {', '.join(sorted(kinds))}; name the files of one kind"
            )
        prefix = root.rstrip("/") + "/"
        return [
            (f"{source.rstrip('/')}/{name.removeprefix(prefix)}", filesystem.unstrip_protocol(name))
            for name in readable
        ]


def _hub_dataset(source: str) -> Any:
    """A data set of the hub, its ``train`` split, or the only one.

    Raises:
        DataError: it cannot be had.
    """
    import datasets  # noqa: PLC0415 - heavy, and only hub ids need it

    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(source)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"dataset: {source}: not a file here, and the hub does not give it either: {reason}") from error
    if len(found) == 1:
        return next(iter(found.values()))
    if "train" not in found:
        raise DataError(f"dataset: {source}: it has the splits {', '.join(found)}, and none is called train")
    return found["train"]


def _digest(url: str) -> tuple[str, int]:
    digest, num_bytes = hashlib.sha256(), 0
    with fsspec.open(url, "rb", compression=None) as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
            num_bytes += len(block)
    return digest.hexdigest(), num_bytes


def _extension(name: str) -> str:
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    while suffixes and suffixes[-1] in _PACKINGS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _decoded(raw: bytes) -> str:
    """Text in which bytes that are not UTF-8 stand as lone surrogates, so that they are found row by row."""
    return raw.decode(errors="surrogateescape")


def _kinds() -> str:
    return f"taken are {', '.join(_READERS)}, each also packed ({', '.join(_PACKINGS)})"


def _nearest(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"; the folder {folder} does not exist"
    near = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1, cutoff=0.6)
    return f"; did you mean {folder / near[0]}?" if near else ""
