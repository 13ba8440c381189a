import pytest

from ddim.base.errors import InputError, RunError, unknown


def test_unknown_offers_the_nearest_name_and_all_choices():
    error = unknown("schedule", "cosin", ["linear", "cosine"])
    assert isinstance(error, InputError)
    assert (
        str(error) == "unknown schedule 'cosin': did you mean 'cosine'? (choices: linear, cosine)"
    )


def test_unknown_offers_nothing_when_nothing_is_near():
    error = unknown("method", "xyzzy", iter(["ddim", "ddpm"]))
    assert str(error) == "unknown method 'xyzzy' (choices: ddim, ddpm)"


def test_input_and_run_errors_are_told_apart():
    """The one is the caller's to mend (exit status 2), the other is not (exit status 1)."""
    with pytest.raises(ValueError, match="wrong"):
        raise InputError("wrong")
    assert not issubclass(RunError, InputError)
    assert not issubclass(InputError, RunError)
