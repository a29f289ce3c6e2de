"""Lists of images to train on: CSV, TSV or TOML files, folders, and the shards of a list."""

from __future__ import annotations

import csv
import io
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from unziplora_cli.checks import BOOLEANS, check_settings, field_names, plain_type, refuse_unknown
from unziplora_cli.config import TrainConfig
from unziplora_cli.errors import Remedy, UsageError
from unziplora_cli.files import read_text
from unziplora_cli.paths import expand_user
from unziplora_cli.projects.names import check_name, slugify
from unziplora_cli.workflows.destyle import WAYS

TEXTS = (
    *("file", "name", "subject", "style", "features", "trigger", "preset"),
    *("full_prompt", "content_prompt", "style_prompt", "validation_prompt"),
)
"""Columns that are texts; every other column is a training setting."""


@dataclass(frozen=True)
class Row:
    """One image of a list, and what the list says about its training.

    ``where`` is the place in the list, for messages. ``texts`` has the columns in `TEXTS` that are given, but
    ``file`` and ``name``.
    """

    where: str
    file: Path
    name: str
    texts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def with_defaults(self, texts: Mapping[str, str | None], settings: Mapping[str, Any]) -> Row:
        """The row with values of the whole command wherever it has none of its own."""
        given = {key: text for key, text in texts.items() if text is not None}
        return replace(self, texts={**given, **self.texts}, settings={**settings, **self.settings})


def read_list(path: Path) -> list[Row]:
    """The rows of a .csv, .tsv or .toml file, whose paths are relative to its folder.

    A CSV file has one image per line, under column names. A TOML file has one table ``[[image]]`` per image;
    keys above the tables hold for all images. Raises UsageError for anything that no training could use,
    except images that are missing or damaged.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise UsageError(f"Cannot read the list {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"The list {path} is not UTF-8 text.", Remedy("Save it as CSV in UTF-8, or as TOML.")
        ) from error
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".toml"):
        raise UsageError(f"{path} is no list of images.", Remedy("Use a .csv, .tsv or .toml file."))
    parse = _read_toml if kind == ".toml" else _read_csv
    rows = [_row(path, where, values) for where, values in parse(path, text)]
    if not rows:
        raise UsageError(f"The list {path} has no images.")
    return _with_unique_names(rows)


def rows_of_images(paths: Sequence[Path]) -> list[Row]:
    """A row for each image and each image in a folder, by file name; raises UsageError if there is none."""
    from unziplora_cli.image_formats import image_files

    images: list[Path] = []
    for path in paths:
        try:
            inside = image_files(path) if path.is_dir() else [path]
        except OSError as error:
            raise UsageError(f"Cannot read the folder {path}: {error.strerror}.") from error
        if not inside:
            raise UsageError(
                f"There are no images in {path}.", Remedy("Name an image, or a folder that holds some.")
            )
        images += inside
    return _with_unique_names([Row(str(image), image, slugify(image.stem)) for image in images])


def take_shard(rows: Sequence[Row], shard: str) -> list[Row]:
    """Shard ``i/n`` of the rows: number i, i + n, i + 2 n and so on, counted from 1, on every machine.

    The shards of a list are disjoint and complete, and differ by at most one row. Raises UsageError.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
    number, shards = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= shards:
        raise UsageError(
            f"{shard!r} is no shard.",
            Remedy("Name the second of four shards like this", settings={"shard": "2/4"}),
        )
    return list(rows[number - 1 :: shards])


def _read_csv(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    text = re.sub(r"\A\s*sep=[,;\t]\r?\n", "\n", text)  # a line for Excel alone
    header = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if columns is None:
                columns = [_key(cell) for cell in cells]
                while columns[-1] == "":
                    columns.pop()
                _check_columns(columns, path)
                continue
            where = f"{path.name}, line {reader.line_num}"
            if any(cells[len(columns) :]):
                raise UsageError(
                    f"{where} has {len(cells)} cells, but there are {len(columns)} columns.",
                    Remedy("Put quotation marks around a text with commas."),
                )
            yield where, {key: cell for key, cell in zip(columns, cells, strict=False) if cell}
    except csv.Error as error:
        raise UsageError(f"{path.name}, line {reader.line_num}, is not valid CSV: {error}.") from error


def _check_columns(columns: Sequence[str], path: Path) -> None:
    if "file" not in columns:
        raise UsageError(
            f"{path.name} has no column 'file'.", Remedy("Begin it with a line like: file,subject,style")
        )
    refuse_unknown(dict.fromkeys(columns), (*TEXTS, *field_names(TrainConfig)), path.name)
    for key in columns:
        if columns.count(key) > 1:
            raise UsageError(f"{path.name} has two columns {key!r}.")


def _read_toml(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The list {path} is not valid TOML: {error}.") from error
    tables = data.pop("image", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(
            f"image in {path.name} must be a table per image.", Remedy("Write [[image]] above each one.")
        )
    allowed = (*TEXTS, *field_names(TrainConfig))
    shared = {_key(key): value for key, value in data.items()}
    refuse_unknown(shared, (*(key for key in allowed if key not in ("file", "name")), "image"), path.name)
    for number, table in enumerate(tables, start=1):
        where = f"{path.name}, image {number}"
        values = {_key(key): value for key, value in table.items()}
        refuse_unknown(values, allowed, where)
        yield where, {**shared, **values}


def _key(column: str) -> str:
    return column.strip().lower().replace("-", "_").replace(" ", "_")


def _row(path: Path, where: str, values: Mapping[str, Any]) -> Row:
    try:
        texts = {key: values[key] for key in TEXTS if key in values}
        for key, text in texts.items():
            if not isinstance(text, str):
                raise UsageError(f"{key.replace('_', '-')} must be text.")
        if not texts.get("file"):
            raise UsageError("There is no file.", Remedy("Name the image in the column file."))
        if "\0" in texts["file"]:
            raise UsageError("The name of the file contains a NUL character.")
        file = path.parent / expand_user(texts.pop("file"))
        name = check_name(texts.pop("name")) if "name" in texts else slugify(file.stem)
        if texts.get("preset", "").endswith(".toml"):
            texts["preset"] = str(path.parent / texts["preset"])
        settings = {key: value for key, value in values.items() if key not in TEXTS}
        if path.suffix.lower() != ".toml":
            settings = {key: _cell_value(key, cell) for key, cell in settings.items()}
        for key in ("destyle", "prior_content", "prior_style"):
            if isinstance(settings.get(key), str) and not (key == "destyle" and settings[key] in WAYS):
                settings[key] = str(path.parent / expand_user(settings[key]))
        check_settings(TrainConfig, settings)
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", *error.remedies) from error
    return Row(where, file, name, texts, settings)


def _cell_value(key: str, cell: str) -> Any:
    """A cell of a CSV file, converted to the type of its setting."""
    kind = plain_type(_hints()[key])
    if kind is str:
        return cell
    label, text = key.replace("_", "-"), cell.lower()
    if kind is bool:
        if text not in BOOLEANS:
            raise UsageError(f"{label} must be true or false, not {cell!r}.")
        return BOOLEANS[text]
    try:
        return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else float(text)
    except ValueError as error:
        raise UsageError(f"{label} must be a number, not {cell!r}.") from error


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(TrainConfig)


def _with_unique_names(rows: list[Row]) -> list[Row]:
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(row.name, row)
        if other is not row:
            raise UsageError(
                f"{other.where} and {row.where} would both create the project {row.name!r}.",
                Remedy("Give each its own name, in the column name of a list."),
            )
    return rows
