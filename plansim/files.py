"""Files at the border: safe YAML with line numbers, pydantic checks with places, overrides, atomic writes."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from plansim.errors import InputError, UnitError, nearest
from plansim.places import explained
from plansim.units import parse

if TYPE_CHECKING:
    from ruamel.yaml import YAML

STDIN = "-"
"""The name of standard input where a file is read."""

MAX_FILE_BYTES = 16 * 2**20
MAX_YAML_BYTES = 2**20
MAX_YAML_DEPTH = 32
STANDARD_TAGS = tuple(
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")
)


class Schema(BaseModel):
    """Base of every file schema: unknown keys are errors, values are never changed after checking."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _quantity(dimension: str) -> BeforeValidator:
    def convert(value: object) -> float:
        try:
            return parse(value, dimension)
        except UnitError as error:
            raise ValueError(str(error)) from None

    return BeforeValidator(convert)


Bytes = Annotated[float, _quantity("bytes")]
BytesPerSecond = Annotated[float, _quantity("bytes/s")]
Seconds = Annotated[float, _quantity("seconds")]
FlopPerSecond = Annotated[float, _quantity("flop/s")]
Watts = Annotated[float, _quantity("watts")]
Tokens = Annotated[float, _quantity("tokens")]

Count = Annotated[int, Field(strict=True, ge=1, le=2**31)]
"""A whole number from 1; text, booleans and fractions are refused."""
WholeNumber = Annotated[int, Field(strict=True, ge=0, le=2**31)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1, max_length=4096)]

S = TypeVar("S", bound=BaseModel)


def read_yaml(path: Path) -> Any:
    """Return the data of a YAML 1.2 (or JSON) file as ruamel's commented containers, which know their lines.

    Raises
    ------
    InputError
        When the file is missing, too large, not UTF-8, not YAML, nested too deep, or uses aliases (which
        let a small file expand without bound).
    """
    text = read_text(path, MAX_YAML_BYTES)
    from ruamel.yaml.error import YAMLError

    if _bracket_depth(_without_strings_and_comments(text)) > MAX_YAML_DEPTH:
        raise InputError(f"{path}: nested deeper than {MAX_YAML_DEPTH} levels")
    try:
        return _plain_yaml(path).load(text)
    except InputError:
        raise
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise InputError(f"{path}{place}: not valid YAML: {_yaml_words(error)}") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: not readable as YAML: {type(error).__name__}: {error}") from None


def _yaml_words(error: Exception) -> str:
    """Return what is wrong with a YAML text, with what to do where the reader's own words do not say it."""
    problem = str(getattr(error, "problem", None) or error)
    if "'\\t'" in problem:
        return "a tab, where YAML wants spaces: indent with spaces"
    return problem.replace("but found another document", "a second document begins here, expected one")


def _plain_yaml(path: Path) -> YAML:
    """Return a reader that refuses aliases and tags where they stand."""
    from ruamel.yaml import YAML
    from ruamel.yaml.composer import Composer
    from ruamel.yaml.events import AliasEvent

    class PlainComposer(Composer):
        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.parser.peek_event()
            place = f"{path}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"
            if isinstance(event, AliasEvent):
                raise InputError(f"{place}: YAML aliases (*name) are not accepted; write the value out")
            if (getattr(event, "tag", None) or STANDARD_TAGS[0]) not in STANDARD_TAGS:
                raise InputError(f"{place}: YAML tags (!name) are not accepted")
            return super().compose_node(parent, index)

    yaml = YAML(typ="rt", pure=True)
    yaml.Composer = PlainComposer
    return yaml


def read_text(path: Path, max_bytes: int = MAX_FILE_BYTES) -> str:
    """Return a file's text, without a byte-order mark; that of standard input for ``-``.

    Refuses folders, absent files, more than `max_bytes`, and what is not UTF-8.
    """
    if str(path) == STDIN:
        return _read_stdin(max_bytes)
    try:
        size = path.stat().st_size
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(max_bytes + 1) if size <= max_bytes else ""  # a device has no size, and no end
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, expected a file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text file ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if max(size, len(text)) > max_bytes:
        given = f"{size} bytes is" if size > max_bytes else "it is"
        raise InputError(f"{path}: {given} too large, at most {max_bytes} are read")
    return text


def _read_stdin(max_bytes: int) -> str:
    """Return the text of standard input, which can be read once."""
    if sys.stdin is None or sys.stdin.closed:
        raise InputError(f"{STDIN}: there is no standard input")
    data = getattr(sys.stdin, "buffer", sys.stdin).read(max_bytes + 1)
    if len(data) > max_bytes:
        raise InputError(f"{STDIN}: standard input is too large, at most {max_bytes} bytes are read")
    if not data:
        raise InputError(f"{STDIN}: standard input is empty (it can be read once)")
    try:
        return data if isinstance(data, str) else data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{STDIN}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _without_strings_and_comments(text: str) -> str:
    text = re.sub(r"\"(?:[^\"\\]|\\.)*\"|'[^']*'", '""', text)
    return re.sub(r"(^|\s)#.*", "", text)


def _bracket_depth(text: str) -> int:
    """Return how deep brackets are nested, so that a parser need not find out."""
    depth = deepest = 0
    for bracket in re.findall(r"[\[{\]}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def check(
    data: Any,
    schema: type[S],
    *,
    source: str,
    overrides: Mapping[str, str] | None = None,
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> S:
    """Return `data` checked by `schema`, or raise one `InputError` that lists every error with its place.

    Parameters
    ----------
    data : Any
        What `read_yaml` returned, or plain containers.
    schema : type
        A pydantic model.
    source : str
        File name for messages.
    overrides : mapping of str to str, optional
        Dotted path to YAML text, as ``-o`` gives them (without the leading file kind).
    prepare : callable, optional
        Fills in, after the overrides, what a file may leave out.
    """
    if not isinstance(data, Mapping):
        found = "nothing" if data is None else "a list" if isinstance(data, list) else f"'{data!s:.40}'"
        raise InputError(f"{source}: expected a mapping of keys, found {found}")
    _limit_depth(data, source)
    for path, text in (overrides or {}).items():
        data = _with_override(data, path.split("."), _scalar(text), source, path)
    values = plain(data)
    try:
        return schema.model_validate(prepare(values) if prepare else values)
    except ValidationError as error:
        given = tuple(overrides or ())
        lines = [explained(e, data, schema, source, given) for e in error.errors(include_url=False)]
        raise InputError("\n".join(dict.fromkeys(lines))) from None


def _limit_depth(data: Any, source: str, depth: int = 0) -> None:
    if depth > MAX_YAML_DEPTH:
        raise InputError(f"{source}: nested deeper than {MAX_YAML_DEPTH} levels")
    children: Iterable[Any] = (
        data.values() if isinstance(data, Mapping) else data if isinstance(data, list) else ()
    )
    for child in children:
        _limit_depth(child, source, depth + 1)


def plain(data: Any) -> Any:
    """Return ruamel's containers and scalars as plain Python ones."""
    if isinstance(data, Mapping):
        return {str(k): plain(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [plain(v) for v in data]
    if isinstance(data, bool) or data is None:
        return data
    if hasattr(data, "isoformat"):
        return data.isoformat()
    for kind in (int, float, str):
        if isinstance(data, kind):
            return kind(data)
    return data


def _scalar(text: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return text


def _with_override(data: Any, keys: list[str], value: Any, source: str, path: str) -> Any:
    """Return a copy of `data` with the value at the dotted path replaced; list items go by index."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(data, list):
        if not key.isdigit() or int(key) >= len(data):
            raise InputError(f"-o {path}: '{key}' is no index into {source}'s list of {len(data)} items")
        return [
            _with_override(v, rest, value, source, path) if i == int(key) else v for i, v in enumerate(data)
        ]
    if data is not None and not isinstance(data, Mapping):
        raise InputError(f"-o {path}: '{key}' goes below a plain value in {source}")
    copy = dict(data or {})
    copy[key] = _with_override(copy.get(key), rest, value, source, path)
    return copy


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML text in the order given."""
    text = _dumped(plain(data), allow_unicode=True)
    breaks = re.search("[\x85\u2028\u2029]", text)  # Unicode's own would be read back as blanks: escape them
    folded = re.search(r"\\$", text, re.MULTILINE)  # a quoted text over two lines may gain a blank
    if breaks or folded:
        return _dumped(plain(data), allow_unicode=not breaks, width=MAX_YAML_BYTES)
    return text


def _dumped(data: Any, *, allow_unicode: bool, width: int = 120) -> str:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.allow_unicode = allow_unicode
    yaml.width = width
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()


def dump_json(data: Any, *, ascii_only: bool = False) -> str:
    """Return plain data as strict JSON text (no NaN)."""
    return json.dumps(data, indent=2, allow_nan=False, ensure_ascii=ascii_only) + "\n"


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that readers see the old content or the new, never a part.

    Raises
    ------
    InputError
        When the folder is missing or the disk refuses; the old file is then untouched.
    """
    path = Path(path)
    handle, temporary = _temporary(path)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Raise `InputError` where `write_atomic` would refuse: asked before work that takes long."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file")
    handle, temporary = _temporary(path)
    os.close(handle)
    temporary.unlink()


def _temporary(path: Path) -> tuple[int, Path]:
    """Return a new file beside `path`, open and by name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    return handle, Path(name)


def resolve(
    name: str, folders: Iterable[Path], suffixes: tuple[str, ...], kind: str, known: Callable[[], list[str]]
) -> Path:
    """Return the file that `name` means: a path as given, else below `folders`; the suffix may be left off.

    Raises
    ------
    InputError
        When nothing matches; lists the known names and offers the nearest.
    """
    if name == STDIN:
        raise InputError(f"{kind} -: a plan names its {kind}, so give a file or a name, not standard input")
    given = Path(name)
    roots = [Path(), *folders] if not given.is_absolute() else [Path()]
    for root in roots:
        for candidate in (root / given, *(root / f"{name}{s}" for s in suffixes)):
            if is_file(candidate):
                return candidate
    if is_file(given, Path.is_dir):
        inside = "".join(f" without a {s[1:]}" for s in suffixes if s.startswith("/"))
        raise InputError(f"{name}: a folder{inside}, expected the file of a {kind}")
    names = known()
    near = nearest(given.stem if given.suffix in suffixes else given.name, names)
    hint = f"did you mean '{near}'? " if near else ""
    raise InputError(f"no {kind} '{name}' ({hint}known: {', '.join(names)}; or give a path)")


def is_file(path: Path, there: Callable[[Path], bool] = Path.is_file) -> bool:
    """Return whether a file (`there`: something else) is at a path that can be asked about."""
    try:
        return there(path)
    except OSError:  # a name too long, a folder that may not be entered
        return False
