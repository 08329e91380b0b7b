"""Errors and the files that they name.

Claims: an error of a file begins with its name and has it as a field; one that names no file gets
the one that is at work, once; its chain of causes ends; classes and further fields stay, also
through pickles.
"""

from __future__ import annotations

import pickle

import pytest

from whitediff.errors import ArgumentError, DataError, FileFormatError, TooFewSourcesError, naming


def chain(error):
    found = []
    while error is not None:
        assert error not in found, "its causes go round in circles"
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


@pytest.mark.parametrize("kind", [ArgumentError, DataError, FileFormatError])
def test_an_error_of_a_file(kind):
    error = kind.of("a.fits", "is too small.")
    assert str(error) == "a.fits: is too small."
    assert error.file == "a.fits"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.file, type(again)) == (str(error), "a.fits", kind)
    assert kind("Too small.").file is None


def test_a_file_is_named_once():
    with pytest.raises(DataError) as caught, naming("b.fits"), naming("a.fits"):
        raise DataError("Nothing is there.")
    assert str(caught.value) == "a.fits: Nothing is there."
    assert caught.value.file == "a.fits"
    assert len(chain(caught.value)) == 2
    with pytest.raises(DataError) as caught, naming("b.fits"):
        raise DataError.of("a.fits", "is empty.")
    assert str(caught.value) == "a.fits: is empty."
    assert len(chain(caught.value)) == 1


def test_further_fields_stay():
    with pytest.raises(TooFewSourcesError) as caught, naming("a.fits"):
        raise TooFewSourcesError("Two stars.", found=2, required=3)
    assert (caught.value.found, caught.value.required) == (2, 3)
    assert str(caught.value) == "a.fits: Two stars."
    with naming("a.fits"), pytest.raises(KeyError):
        raise KeyError("x")
