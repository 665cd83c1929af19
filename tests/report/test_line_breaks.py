"""Text in the figures is broken into lines by its measured width."""

import pytest

from anml.report.style import broken, text_width

TEXT = "olft-oracle-no-momentum (held out: all after the first 60 classes; adam_betas: 0.9, 0.999)"


def test_text_that_fits_stays_as_it_is():
    assert broken("olft\nolft-oracle", 1.5) == "olft\nolft-oracle"


@pytest.mark.parametrize("width", [0.1, 0.5, 1.0, 2.0, 4.0])
def test_no_line_is_wider_than_asked_for(width: float):
    assert max(map(text_width, broken(TEXT, max(width, text_width("W"))).split("\n"))) <= max(width, text_width("W"))


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_nothing_is_lost_but_spaces(width: float):
    assert "".join(broken(TEXT, width).split()) == "".join(TEXT.split())


def test_lines_break_between_words_before_they_break_a_name():
    assert broken("held out: all", text_width("held out:")) == "held out:\nall"
    assert broken("olft-oracle", text_width("olft-ora")) == "olft-\noracle"
    assert broken("oracle", text_width("orac")) == "orac\nle"
