"""Any exception in one line: whose fault it is, and what it says without the frames around it."""

import errno
import re
import traceback
from pathlib import Path

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

USER_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException)
HYDRA_ERRORS = (HydraException, OmegaConfBaseException)
LIBRARIES = ("torch", "lightning", "wandb", "webdataset", "PIL", "safetensors")  # whose own exceptions they are
INSTALLED = re.compile(r"site-packages|dist-packages|lib/python3|<frozen|<string>")


def is_a_librarys(error: BaseException) -> bool:
    """Whether an exception was raised by other people's code, such as torch's on a GPU that is full."""
    if isinstance(error, MemoryError) or type(error).__module__.partition(".")[0] in LIBRARIES:
        return True
    if not isinstance(error, Exception) or error.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return (
        not Path(frame.f_code.co_filename).is_relative_to(Path(__file__).parents[1])
        and INSTALLED.search(frame.f_code.co_filename) is not None
    )


def one_line(error: BaseException) -> str:
    """The message of an exception, with that of what Hydra wrapped, on one line."""
    cause = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return _of_the_system(error)
    if in_worker := re.match(r"(?s)Caught \w+ in DataLoader worker.*\n(?:[\w.]+: )?(.+)$", str(error).rstrip()):
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
