"""What plain data may build, and that nothing else in it is interpreted."""

import sys
import types
from collections import Counter
from fractions import Fraction

import pytest

from ldm.runtime import targets

ALLOWED = ("fractions", "collections")
HALF = {"_target_": "fractions.Fraction", "numerator": 1, "denominator": 2}


@pytest.mark.parametrize(
    ("data", "built"),
    [
        (HALF, Fraction(1, 2)),
        ({"a": [HALF, {"b": HALF}], "c": 3}, {"a": [Fraction(1, 2), {"b": Fraction(1, 2)}], "c": 3}),
        ((HALF, 1), [Fraction(1, 2), 1]),
        ({"_target_": "fractions.Fraction", "numerator": HALF}, Fraction(1, 2)),
        ({"_target_": "collections.Counter", "_partial_": False}, Counter()),
        ("${oc.env:HOME}", "${oc.env:HOME}"),
        ({"a": "${b}", "b": "???"}, {"a": "${b}", "b": "???"}),
        (None, None),
    ],
)
def test_data_become_what_they_describe_and_strings_stay_strings(data, built):
    assert targets.build(data, ALLOWED) == built


def test_partial_binds_and_does_not_call():
    half_of = targets.build({"_target_": "fractions.Fraction", "_partial_": True, "denominator": 2}, ALLOWED)
    assert half_of(3) == Fraction(3, 2)


BAD = {"_target_": "os.mkdir", "path": "made"}


@pytest.mark.parametrize(
    "data",
    [
        BAD,
        [BAD],
        (1, (BAD,)),
        {"a": {"b": [({"c": BAD},)]}},
        HALF | {"numerator": BAD},
        HALF | {"numerator": (BAD,)},
        {"_target_": "os.mkdir", "_partial_": True},
    ],
)
def test_a_foreign_target_is_found_at_any_depth_and_nothing_is_called(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert targets.foreign_targets(data, ALLOWED) == {"os.mkdir": "os"}
    with pytest.raises(targets.UntrustedError, match=r"refusing to build os\.mkdir"):
        targets.build(data, ALLOWED)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["${oc.env:TARGET}", "collections", "fractionsx.Fraction", 7, None, ["fractions.F"]])
def test_what_is_no_name_within_an_allowed_package_is_foreign(target, monkeypatch):
    monkeypatch.setenv("TARGET", "fractions.Fraction")
    with pytest.raises(targets.UntrustedError):
        targets.build({"_target_": target}, ALLOWED)


def test_what_an_allowed_module_has_imported_is_foreign():
    assert targets.foreign_targets({"_target_": "fractions.Decimal"}, ALLOWED) == {"fractions.Decimal": "decimal"}


def test_no_way_leads_through_a_modules_imports():
    with pytest.raises(ValueError, match=r"collections\._sys\.exit can't be imported"):
        targets.build({"_target_": "collections._sys.exit"}, ALLOWED)


def test_beside_a_foreign_target_nothing_is_imported(tmp_path, monkeypatch):
    (tmp_path / "loud.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(targets.UntrustedError):
        targets.build([{"_target_": "loud.A"}, BAD], ["loud"])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"_target_": "fractions.Fractoin"}, r"fractions\.Fractoin can't be imported .*as package\.module\.Name"),
        ({"_target_": "collections.nowhere.A"}, "No module named 'collections.nowhere'"),
        (HALF | {"denom": 2}, r"fractions\.Fraction: got an unexpected keyword argument 'denom'"),
        ({"_target_": "fractions.Fraction", "_args_": [1]}, "unexpected keyword argument '_args_'"),
    ],
)
def test_mistakes_are_named(data, said):
    with pytest.raises(ValueError, match=said):
        targets.build(data, ALLOWED)


def test_an_error_within_what_is_called_is_its_own(monkeypatch):
    module = types.ModuleType("faulty")
    exec("def f():\n    return 1 + None", module.__dict__)  # noqa: S102
    monkeypatch.setitem(sys.modules, "faulty", module)
    with pytest.raises(TypeError, match="unsupported operand"):
        targets.build({"_target_": "faulty.f"}, ["faulty"])


def test_packages_are_a_name_or_several():
    assert targets.packages("my_pkg") == targets.packages(["my_pkg"]) == ("my_pkg",)
    assert targets.packages(["a.b", "c"]) == ("a.b", "c")
    assert targets.packages([]) == ()
    for wrong in ("", "my-pkg", ["a", "b/c"], [3]):
        with pytest.raises(ValueError, match="trust="):
            targets.packages(wrong)
