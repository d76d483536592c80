"""JSON files of known formats: each is a typed class, checked when it is written and when it is read.

Whoever reads such a file gets an object whose every field is of its type and in its range, or one line that says what
is wrong with it: file, key, what is there, what belongs there, what to do.
"""

import hashlib
import json
import math
import re
import stat
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ldm.runtime.files import atomic_write
from ldm.runtime.wrong import shown, wanted

CHECKSUM = "checksum"  # of all the other keys
LARGEST = 256 * 2**20  # bytes of a JSON file: the manifest of a hundred million latents has a tenth of that


class DamagedFileError(ValueError):
    """A file that is not what its format says."""


def inside(name: str) -> str:
    """A file's name that stays in its folder, and that nothing takes for a URL, a pipe or a pattern."""
    if name in ("", ".", "..") or len(name.encode(errors="surrogatepass")) > 255 or not name.isprintable():
        raise ValueError("a file's name")
    if re.search(r"[/\\:{}*?\[\]|]", name) or name.startswith((".", "~", "-")):
        raise ValueError("the name of a file in this folder")
    return name


def distinct(values: list[Any]) -> list[Any]:
    """A list without repetition."""
    if len(set(values)) < len(values):
        raise ValueError("each once")
    return values


def one_of(*numbers: int) -> AfterValidator:
    """Whole numbers to choose from; a Literal would take true for 1."""

    def check(value: int) -> int:
        if value not in numbers:
            raise ValueError(" or ".join(map(str, numbers)))
        return value

    return AfterValidator(check)


FileName = Annotated[str, AfterValidator(inside)]
PATTERNS = {  # and what to call what they match
    r"^[0-9a-f]{16}$": "16 hexadecimal digits",
    r"^[0-9a-f]{64}$": "the 64 hexadecimal digits of a SHA-256",
    r"^[0-9]+$": "a number in digits",
    r"^(ema|raw|sigma_rel=0\.[0-9]+)$": "ema or raw, or sigma_rel=W",
}
FINGERPRINT, SHA256, DIGITS, WEIGHTS = PATTERNS
Fingerprint = Annotated[str, Field(pattern=FINGERPRINT)]
Sha256 = Annotated[str, Field(pattern=SHA256)]
Digits = Annotated[str, Field(pattern=DIGITS)]
WhichWeights = Annotated[str, Field(pattern=WEIGHTS)]  # the last: an average of that width
ClassNames = Annotated[list[str], Field(min_length=1), AfterValidator(distinct)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def _whitens(rows: list[list[float]]) -> list[list[float]]:
    square = all(len(row) == len(rows) for row in rows)
    matrix = np.array(rows, np.float32).astype(np.float64) if square else np.zeros((1, 1))
    least, most = np.linalg.eigvalsh(matrix)[[0, -1]]
    if not (np.array_equal(matrix, matrix.T) and least > 1e-6 * most):
        raise ValueError("a symmetric, positive definite matrix")
    return rows


Whitening = Annotated[list[list[Finite]], Field(min_length=1, max_length=1024), AfterValidator(_whitens)]


class Part(BaseModel):
    """Some keys of a file, frozen: each of its exact type, numbers finite, none unknown."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class JsonFile(Part):
    """A JSON file of one format.

    fix:      what to do about one that is wrong, for errors
    known: values of its key `format` that this code reads; () of a format without one
    checksummed: whether it carries a checksum of itself; a format of others, whose files people edit, does not
    """

    fix: ClassVar[str]
    known: ClassVar[tuple[int, ...]] = ()
    checksummed: ClassVar[bool] = True

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            DamagedFileError: in one line, if it is missing, no JSON, of another version or of another schema.
        """
        data = cls._parsed(path)
        if cls.known and isinstance(data, dict) and data.get("format", cls.known[0]) not in cls.known:
            reads = " or ".join(map(str, cls.known))
            cls._refuse(f"{path} has the format {shown(data['format'])}; this version of ldm reads {reads}")
        if cls.checksummed and isinstance(data, dict) and CHECKSUM in data:  # files of before version 0.3 have none
            noted = data.pop(CHECKSUM)
            if noted != checksum_of(data):
                cls._refuse(
                    f"{path} is not as it was written: its {CHECKSUM} is another (if it was changed on purpose, remove "
                    "that key)"
                )
        try:
            return cls.model_validate_json(json.dumps(data))
        except ValidationError as error:
            cls._refuse(f"{path}: {problem(error, data)}")

    @classmethod
    def _parsed(cls, path: Path) -> Any:
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                cls._refuse(f"{path} is no regular file")
            if status.st_size > LARGEST:
                cls._refuse(f"{path} has {status.st_size:,} bytes, far too many for what it should be")
            return json.loads(path.read_bytes(), parse_constant=_no_number, parse_float=_finite)
        except FileNotFoundError:
            cls._refuse(f"{path} does not exist")
        except (ValueError, RecursionError) as error:
            if isinstance(error, DamagedFileError):
                raise
            cls._refuse(f"{path} is damaged, not JSON ({' '.join(str(error).split())})")

    @classmethod
    def _refuse(cls, what: str) -> NoReturn:
        raise DamagedFileError(f"{what}: {cls.fix}") from None

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all; what was never given is left out."""
        data = self.model_dump(mode="json", exclude_unset=True)
        data |= {CHECKSUM: checksum_of(data)} if self.checksummed else {}
        text = json.dumps(data, indent=2, allow_nan=False)
        with atomic_write(path) as file:
            file.write((text + "\n").encode())


def checksum_of(data: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of plain data, however they are laid out."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def problem(error: ValidationError, data: Any, errors: list[Any] | None = None) -> str:
    """The first thing that is wrong with plain data, where, and what belongs there; `errors` are those of `error`, if
    their places need to be others."""
    errors = errors or error.errors()
    place, value = place_in(errors[0]["loc"], data)
    kind, cause = errors[0]["type"], errors[0].get("ctx", {}).get("error")
    if kind == "extra_forbidden":
        return f"{place} is no key of this format"
    if kind == "missing":
        return f"{place} is missing"
    if cause is not None and not errors[0]["loc"]:  # a check across keys, which names them itself
        return str(cause)
    if kind == "string_pattern_mismatch":
        belongs = PATTERNS[errors[0]["ctx"]["pattern"]]
    elif cause is not None:
        belongs = str(cause)
    else:
        belongs = wanted([each for each in errors if place_in(each["loc"], data)[0] == place])
    text = shown(value)
    return f"{place + ' is ' if place else 'it is '}{text if len(text) <= 80 else text[:77] + '...'}, not {belongs}"


def place_in(loc: tuple[str | int, ...], data: Any) -> tuple[str, Any]:
    """The place that pydantic names, as in shards.train[3].count, and the value there; branches of unions are none."""
    place = ""
    for part in loc:
        if isinstance(data, dict) and isinstance(part, str):
            place += f".{part}" if place else part
            if part not in data:
                return place, None
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            place += f"[{part}]"
        else:
            continue
        data = data[part]
    return place, data


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")
