"""The dataset port over local files and folders, fsspec URLs and the Hugging Face hub.

JSON is read by this package, strictly, since only so can a broken line be named; CSV by Python's reader, Parquet by
pyarrow, batch by batch; hub ids by ``datasets``, memory-mapped.

What is wrong with the content of a file is a row with a problem. A file that cannot be read for another reason, such as
a lost connection, is an error: its other rows exist, and a run must not go on without them.
"""

import bz2
import csv
import difflib
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet
from fsspec.implementations.local import LocalFileSystem

from crucible_train import files
from crucible_train.adapters.reasons import in_one_line
from crucible_train.adapters.row_store.json_rows import json_document, json_lines
from crucible_train.config.redaction import hide_secrets
from crucible_train.errors import DataError
from crucible_train.ports import SourceInfo, SourceRow

_BLOCK_BYTES = 1 << 20
_MAX_CELL_CHARACTERS = 2**31 - 1
_UNPACKERS: Mapping[str, Callable[[IO[bytes]], IO[bytes]]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),  # type: ignore[dict-item,return-value]
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".lzma": lzma.LZMAFile,
    ".zst": lambda file: io.BufferedReader(pa.CompressedInputStream(file, "zstd")),
}
_UNPACKING_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)


def _csv_rows(delimiter: str) -> Callable[[IO[bytes], str], Iterator[SourceRow]]:
    def read(file: IO[bytes], name: str) -> Iterator[SourceRow]:
        csv.field_size_limit(_MAX_CELL_CHARACTERS)  # the library's own limit is shorter than some documents
        reader = csv.reader((_decoded(raw) for raw in file), delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            where = f"{name}:{reader.line_num + 1}"
            try:
                values = next(reader, None)
            except csv.Error as error:
                yield SourceRow(where, None, f"broken CSV: {error}")
                continue
            if values is None:
                return
            if header is None and values:
                header = _header(values, where)
            elif values:
                yield _csv_row(values, header or [], where, delimiter)

    return read


def _header(values: list[str], where: str) -> list[str]:
    """The columns of a table.

    Raises:
        DataError: they are not UTF-8, or one stands twice.
    """
    header = [values[0].removeprefix("\ufeff"), *values[1:]]
    if _is_damaged(header):
        raise DataError(f"{where}: the header is not UTF-8")
    twice = [column for index, column in enumerate(header) if column in header[:index]]
    if twice:
        raise DataError(f"{where}: the column {twice[0]!r} stands twice in the header")
    return header


def _csv_row(values: list[str], header: list[str], where: str, delimiter: str) -> SourceRow:
    if _is_damaged(values):
        return SourceRow(where, None, "not UTF-8")
    if len(values) != len(header):
        problem = f"{len(values)} values stand under {len(header)} columns"
        return SourceRow(where, None, problem, delimiter.join(values)[:40])
    return SourceRow(where, dict(zip(header, values, strict=True)))


def _decoded(raw: bytes) -> str:
    """Text in which bytes that are not UTF-8 stand as lone surrogates, so that they are found row by row."""
    return raw.decode(errors="surrogateescape")


def _is_damaged(values: list[str]) -> bool:
    return any("\udc80" <= character <= "\udcff" for value in values for character in value)


def _parquet_rows(file: IO[bytes], name: str) -> Iterator[SourceRow]:
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
            for row in _parquet_batch(batch):
                number += 1
                where = f"{name} row {number}"
                yield SourceRow(where, row) if isinstance(row, dict) else SourceRow(where, None, row)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        yield SourceRow(name, None, f"not a Parquet file: {in_one_line(error)}")


def _parquet_batch(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch, or, for one whose values Python cannot hold, why."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):
        pass  # then row by row, to lose no other
    for index in range(batch.num_rows):
        try:
            yield batch.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError:
            yield "not UTF-8"
        except (ValueError, OverflowError) as error:
            yield f"a value cannot be read: {in_one_line(error)}"


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
        digests = [(file.name, *_digest(file)) for file in found]
        size = sum(num_bytes for *_, num_bytes in digests)
        digest = files.sha256_json([(PurePosixPath(name).name, sha256) for name, sha256, _ in digests])
        return SourceInfo(hide_secrets(source), digest, tuple(file.name for file in found), size)

    def rows(self, source: str) -> Iterator[SourceRow]:
        """The rows of a data set, in order.

        Raises:
            DataError: there is nothing there, or nothing that can be read.
        """
        if not self._is_files(source):
            for number, row in enumerate(_hub_dataset(source), start=1):
                yield SourceRow(f"{source} row {number}", row)
            return
        for found in self._find(source):
            try:
                with found.open() as raw, found.unpacked(raw) as file:
                    yield from _READERS[_extension(found.path)](file, found.name)
            except _UNPACKING_ERRORS as error:
                problem = f"the file could not be read to its end: {in_one_line(error)}"
                yield SourceRow(found.name, None, problem)

    def _is_files(self, source: str) -> bool:
        """Whether the source is a path or a URL; else it is a hub id."""
        if not source.strip():
            raise DataError("dataset: no name is given; a file, a folder, a URL or a hub id is taken")
        if "://" in source:
            return True
        try:
            path = Path(source).expanduser()
            if path.exists():
                return True
            looks_like_path = source.startswith((".", "/", "~")) or _extension(source) in _READERS
            if looks_like_path or source.count("/") > 1:
                raise DataError(f"dataset: {source}: there is no such file or folder{_nearest(path)}")
        except (OSError, RuntimeError) as error:  # no permission, a name too long, an unknown user's home
            raise DataError(f"dataset: {source}: {in_one_line(error)}") from error
        return False

    def _find(self, source: str) -> list["_File"]:
        """The files of a source."""
        shown = hide_secrets(source)
        try:
            filesystem, root = _located(source)
            filesystem.invalidate_cache()
            is_there, is_folder = filesystem.exists(root), filesystem.isdir(root)
            names = sorted(filesystem.find(root)) if is_folder else []
        except Exception as error:  # every filesystem's library has errors of its own
            raise DataError(f"dataset: {shown}: {in_one_line(error, source)}") from error
        if not is_there:
            raise DataError(f"dataset: {shown}: there is no such file or folder")
        if not is_folder:
            if _extension(root) not in _READERS:
                raise DataError(f"dataset: {shown}: files of this kind are not read; {_kinds()}")
            return [_File(_writable(shown), filesystem, root)]
        readable = [
            name
            for name in names
            if _extension(name) in _READERS and not PurePosixPath(name).name.startswith((".", "_"))
        ]
        if not readable:
            found = ", ".join(PurePosixPath(name).name for name in names[:5]) or "nothing"
            raise DataError(f"dataset: {shown}: the folder holds {_writable(found)}; {_kinds()}")
        kinds = {_extension(name) for name in readable}
        if len(kinds) > 1:
            mixed = ", ".join(sorted(kinds))
            raise DataError(f"dataset: {shown}: the folder mixes {mixed}; name the files of one kind")
        prefix = root.rstrip("/") + "/"
        return [
            _File(_writable(f"{shown.rstrip('/')}/{name.removeprefix(prefix)}"), filesystem, name) for name in readable
        ]


class _File(NamedTuple):
    """A file that was found: how it is called in messages, and where it is."""

    name: str
    filesystem: Any
    path: str

    def open(self) -> IO[bytes]:
        """Its bytes as they lie there.

        Raises:
            DataError: it cannot be opened; reading from it raises the same when it fails later.
        """
        try:
            file = self.filesystem.open(self.path, "rb")
        except Exception as error:  # every filesystem's library has errors of its own
            raise DataError(f"{self.name}: {in_one_line(error)}") from error
        return io.BufferedReader(_Bytes(file, self.name), _BLOCK_BYTES)

    def unpacked(self, raw: IO[bytes]) -> IO[bytes]:
        """What is packed in it."""
        packings = [suffix.lower() for suffix in PurePosixPath(self.path).suffixes[::-1]]
        file = raw
        for packing in packings:
            if packing not in _UNPACKERS:
                break
            file = _UNPACKERS[packing](file)
        if file is not raw and _extension(self.path) == ".parquet":
            return io.BytesIO(file.read())  # it is read from its end, where a packed stream cannot begin
        return file


class _Bytes(io.RawIOBase):
    """A file of any filesystem, whose failures to read are told apart from damaged content."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self._name = name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except Exception as error:
            raise DataError(f"{self._name}: reading it failed: {in_one_line(error)}") from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _hub_dataset(source: str) -> Any:
    """A data set of the hub, its ``train`` split, or the only one.

    Raises:
        DataError: it cannot be had.
    """
    from crucible_train.adapters.hub import load_dataset  # noqa: PLC0415 - heavy, and only hub ids need it

    found = load_dataset(source)
    if len(found) == 1:
        return next(iter(found.values()))
    if "train" not in found:
        raise DataError(f"dataset: {source}: it has the splits {', '.join(found)}, and none is called train")
    return found["train"]


def _located(source: str) -> tuple[Any, str]:
    """The filesystem of a source and the path in it."""
    if "://" in source:
        return fsspec.core.url_to_fs(source)
    return LocalFileSystem(), str(Path(source).expanduser().absolute())


def _digest(found: _File) -> tuple[str, int]:
    digest, num_bytes = hashlib.sha256(), 0
    with found.open() as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            num_bytes += len(block)
    return digest.hexdigest(), num_bytes


def _extension(name: str) -> str:
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    while suffixes and suffixes[-1] in _UNPACKERS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _writable(name: str) -> str:
    """The name with bytes that are not UTF-8 spelled out, as it can be stored."""
    return name.encode(errors="backslashreplace").decode()


def _kinds() -> str:
    return f"taken are {', '.join(_READERS)}, each also packed ({', '.join(_UNPACKERS)})"


def _nearest(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"; the folder {folder} does not exist"
    near = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1, cutoff=0.6)
    return f"; did you mean {folder / near[0]}?" if near else ""
