"""Whose fault an exception is, and what a user reads of it."""

import errno
import json
import os
import traceback

import pytest
import torch
from torch.utils.data import DataLoader

from ldm.commands.error_lines import is_a_librarys, is_said, one_line
from ldm.commands.hydra_errors import explain, is_users
from ldm.runtime.doing import doing


def raised(action):
    with pytest.raises(Exception) as info, doing("ldm sample was working in runs/x"):
        action()
    return info.value


def test_a_librarys_exception_is_one_line_with_what_was_being_done():
    error = raised(lambda: json.loads(7))
    assert is_users(error)
    said = explain(error, "sample", [])
    assert said.startswith("ldm sample was working in runs/x: TypeError: the JSON object must be")
    assert said.endswith("(HYDRA_FULL_ERROR=1 shows where)")


def test_a_full_gpu_is_told_apart():
    def out_of_memory():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    said = explain(raised(out_of_memory), "sample", [])
    assert "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB (lower batch_size=; " in said


def test_a_bug_of_ours_shows_its_trace():
    """Raised in a frame of this package, whatever was called below it before."""
    from ldm.images import grid

    error = raised(lambda: grid(None, 3))
    assert isinstance(error, AttributeError)
    assert not is_a_librarys(error)
    assert not is_users(error)


def test_what_a_check_of_ours_says_is_the_whole_line():
    from ldm.diffusion.sampling import sampler_named

    error = raised(lambda: sampler_named("sorcery"))
    assert is_said(error)
    assert explain(error, "sample", []).startswith("sampler=sorcery must be one of")


def test_a_value_error_that_python_raises_in_our_code_is_a_bug_of_ours():
    """`int("x")` has no frame of its own, and nobody has written its message for a user."""
    from ldm.images import class_rows

    error = raised(lambda: class_rows(torch.zeros(2, 3, 4, 4), [0, "x", 1], ["a"]))
    assert not is_said(error)
    assert not is_users(error)


def test_torchs_kernels_that_ours_calls_are_a_librarys():
    from ldm.images import to_image

    error = raised(lambda: to_image(torch.zeros(2, 3, 4, 4).to_sparse()))
    assert isinstance(error, RuntimeError)
    assert is_a_librarys(error)
    assert "(HYDRA_FULL_ERROR=1 shows where)" in explain(error, "sample", [])


def test_a_value_error_of_a_library_says_whose_and_what_was_being_done():
    error = raised(lambda: json.loads("{"))
    assert not is_said(error)
    said = explain(error, "sample", [])
    assert said.startswith("ldm sample was working in runs/x: JSONDecodeError: Expecting property name")


def test_a_bug_of_a_users_package_shows_its_trace():
    error = raised(lambda: {}["x"])
    assert not is_users(error)
    assert traceback.extract_tb(error.__traceback__)[-1].filename == __file__


class _Bad(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise ValueError("cannot decode photos/o\udcff.png: it is cut. Remove it, or pass data.on_error=skip")


def test_of_a_workers_exception_its_own_line_is_said():
    with pytest.raises(ValueError, match="Caught ValueError in DataLoader worker") as info:
        list(DataLoader(_Bad(), num_workers=1))
    assert one_line(info.value).startswith("cannot decode photos/o")
    assert one_line(info.value).endswith("pass data.on_error=skip")


def test_what_the_system_refuses_is_said_with_the_file():

    for code, advice in (
        (errno.ENOSPC, "make room"),
        (errno.EACCES, "change its permissions"),
        (errno.EROFS, "start the"),
    ):
        line = one_line(OSError(code, os.strerror(code), "runs/x/a.npz"))
        assert line.startswith(f"runs/x/a.npz: {os.strerror(code)}: ")
        assert advice in line
