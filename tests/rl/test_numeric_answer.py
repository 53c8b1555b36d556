"""Finding and comparing the number that an answer comes to."""

import threading
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train.rl.numeric_answer import final_number, read_number, same_number, stated

FORMS = {
    "#### 18": 18,
    "so 2 and 3\n#### 5": 5,
    "#### $1,234.50": Fraction("1234.5"),
    "#### 1 234": 1234,
    "#### 1\u202f234\u00a0567": 1234567,
    "#### -7": -7,
    "#### \N{MINUS SIGN}7": -7,
    "#### -$7.25": Fraction("-7.25"),
    "#### $-7": -7,
    "#### 20%": 20,
    "#### 12 apples": 12,
    "#### about 12.": 12,
    "#### x = 12": 12,
    "#### 3 * 4 = 12 dollars": 12,
    "#### 3/4": Fraction(3, 4),
    "#### 1 1/2": Fraction(3, 2),
    "#### .5": Fraction(1, 2),
    "#### 2e3": 2000,
    "#### 5\n#### 6": 6,
    "#### five": None,
    "####": None,
    "7 is it #### none": None,
    r"\boxed{42}": 42,
    r"It is \boxed{\frac{3}{4}}.": Fraction(3, 4),
    r"\boxed{\$1{,}000}": 1000,
    r"\boxed{1,\!000}": 1000,
    r"\boxed{-\dfrac{1}{2}}": Fraction(-1, 2),
    r"#### 5 then \boxed{6}": 6,
    r"\boxed{7": 7,
    "The answer is 9.": 9,
    "The answer is: **9** because 4 + 5": 9,
    "Answer: 9 of 10": 9,
    "answer = 9, or 3 * 3": 9,
    "12 + 7 = 19": 19,
    "12+7=19.": 19,
    "20-18": 18,
    "f(2)-3": 3,
    "between 1,000 and 2,500": 2500,
    "12,34": 34,
    "7.": 7,
    "1/0": None,
    "#### 1/0": None,
    "": None,
    "none": None,
    "1e999999999": None,
    "9" * 5000: None,
}


@pytest.mark.parametrize(("text", "number"), FORMS.items(), ids=[text[:30] for text in FORMS])
def test_the_number_that_is_meant_is_found(text, number):
    assert final_number(text) == number


def test_numbers_are_compared_exactly():
    assert same_number("it is 1,000.0", "#### 1000")
    assert same_number("0.75", "3/4")
    assert not same_number("0.333333333", "1/3")
    assert not same_number("none", "none")
    assert not same_number("10000000000000000000001", "10000000000000000000000")


def test_what_is_marked_is_told_apart_from_what_is_not():
    assert stated("#### 5 apples") == " 5 apples"
    assert stated(r"\boxed{a{b}c}") == "a{b}c"
    assert stated("5") is None


def test_it_works_off_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(same_number("#### 1,234", "#### 1234")))
    thread.start()
    thread.join()
    assert found == [True]


@settings(deadline=None)
@given(st.text() | st.text(alphabet="0123456789,./-$ #\\{}frac boxed=eE%\N{MINUS SIGN}answer is", max_size=300))
def test_no_text_makes_it_fail(text):
    for found in (final_number(text), read_number(text)):
        assert found is None or isinstance(found, Fraction)
    stated(text)


@settings(deadline=None)
@given(
    st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "#### {:,}", "\\boxed{{{}}}", "is {}.00 dollars"])
)
def test_every_whole_number_is_read_back(number, form):
    assert final_number(form.format(number)) == number


@pytest.mark.parametrize("part", ["1", "1,111", "1 ", "answer ", "####", "\\boxed{", "-", "1/", "\\frac{1}{", "a\n"])
def test_a_long_text_takes_no_longer_than_its_length(part):
    final_number(part * 50_000)  # the suite's time limit is the judge: a search that backtracks would never end
