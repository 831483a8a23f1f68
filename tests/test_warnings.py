"""What Python is about to take away is an error where our code uses it: in pytest, and in the
processes of the tests."""

import warnings

import pytest

KINDS = [DeprecationWarning, PendingDeprecationWarning, EncodingWarning]
WARNS = (
    "import warnings\nwarnings.warn_explicit('going away', {kind}, 'a.py', 1, module={module!r})\n"
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "module", ["labkit", "labkit.lesson.lab", "labkit.clinic.shop", "test_lab", "conftest"]
)
def test_our_warning_is_an_error_in_pytest(kind, module):
    with pytest.raises(kind):
        warnings.warn_explicit("going away", kind, "a.py", 1, module=module)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "module", ["__main__", "labkit", "labkit.lesson.lab", "labkit.clinic.shop"]
)
def test_our_warning_is_an_error_in_a_process_that_a_test_starts(python, kind, module):
    process = python(WARNS.format(kind=kind.__name__, module=module))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and f"{kind.__name__}: going away" in said


def test_a_warning_of_a_library_ends_nothing(python):
    source = "".join(WARNS.format(kind=kind.__name__, module="pandas.core") for kind in KINDS)
    process = python(source)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and not said


def test_an_open_that_names_no_encoding_is_an_error(python):
    process = python("import os\nopen(os.devnull)")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "EncodingWarning" in said
