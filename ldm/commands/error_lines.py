"""Any exception in one line: whose fault it is, and what it says without the frames around it."""

import dis
import errno
import re
from pathlib import Path
from types import FrameType

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

USER_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException)
HYDRA_ERRORS = (HydraException, OmegaConfBaseException)
LIBRARIES = ("torch", "lightning", "wandb", "webdataset", "PIL", "safetensors")  # whose own exceptions they are
INSTALLED = re.compile(r"site-packages|dist-packages|lib/python3|<frozen|<string>")
IN_WORKER = re.compile(r"(?s)Caught \w+ in DataLoader worker.*\n(?:[\w.]+: )?(.+)$")


def is_said(error: BaseException) -> bool:
    """Whether an exception's own message is for the user: a check of ours, or of the user's own package, has raised
    it, or Hydra, or the system has refused a file."""
    if isinstance(error, HYDRA_ERRORS) or (isinstance(error, OSError) and error.strerror):
        return True
    if not isinstance(error, USER_ERRORS):
        return False
    raised = _raised_in(error)
    if raised is None or IN_WORKER.match(str(error)):
        return True
    return not _is_installed(raised[0]) and _by_statement(*raised)


def is_a_librarys(error: BaseException) -> bool:
    """Whether an exception was raised by other people's code, such as torch's on a GPU that is full."""
    if isinstance(error, MemoryError) or type(error).__module__.partition(".")[0] in LIBRARIES:
        return True
    raised = _raised_in(error)
    if not isinstance(error, Exception) or raised is None:
        return False
    # torch's kernels have no frame, and raise RuntimeError where ours calls them
    return _is_installed(raised[0]) or (isinstance(error, RuntimeError) and not _by_statement(*raised))


def _raised_in(error: BaseException) -> tuple[FrameType, int] | None:
    """The innermost frame, and its instruction, by its place in the code."""
    entry = error.__traceback__
    while entry is not None and entry.tb_next is not None:
        entry = entry.tb_next
    return None if entry is None else (entry.tb_frame, entry.tb_lasti)


def _by_statement(frame: FrameType, instruction: int) -> bool:
    """Whether it was a `raise` that raised; else a function without a frame, written in C, did."""
    return frame.f_code.co_code[instruction] == dis.opmap["RAISE_VARARGS"]


def _is_installed(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return not Path(file).is_relative_to(Path(__file__).parents[1]) and INSTALLED.search(file) is not None


def one_line(error: BaseException) -> str:
    """The message of an exception, with that of what Hydra wrapped, on one line."""
    cause = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return _of_the_system(error)
    if in_worker := IN_WORKER.match(str(error).rstrip()):
        return in_worker[1]
    message = str(error).split("\n    full_key:")[0] if isinstance(error, HYDRA_ERRORS) else str(error)
    message = " ".join(message.split()) or type(error).__name__
    if not isinstance(error, HYDRA_ERRORS) or cause is None:
        return message
    inner = one_line(cause)
    if isinstance(cause, USER_ERRORS) and not isinstance(cause, HYDRA_ERRORS):
        return inner  # raised by a constructor of this package, and clear without Hydra's frame
    node = re.search(r"full_key: (\S+)", str(error)) if isinstance(error, InstantiationException) else None
    return f"{node[1]}: {inner}" if node else f"{message} ({inner})"


def _of_the_system(error: OSError) -> str:
    """What the system refused, of which file, and what to do."""
    file = f"{error.filename}: " if error.filename else ""
    advice = {
        errno.ENOSPC: "make room, then run the same command",
        errno.EDQUOT: "make room, then run the same command",
        errno.EROFS: "start the command in a folder that can be written",
        errno.EACCES: "this user may not: change its permissions, or start the command elsewhere",
        errno.ELOOP: "it is a link, which is not followed for writing: remove it",
    }.get(error.errno or 0)
    said = error.strerror or ""
    return f"{file}{said}" if advice is None or advice in said else f"{file}{said}: {advice}"
