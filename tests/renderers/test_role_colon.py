"""What only a format whose stop is a text has to answer."""

import pytest

from crucible_train.renderers import FastTokenizer, Renderer, Termination, get_renderer


@pytest.fixture(scope="module", params=["smollm2", "qwen3"])
def role_colon(request: pytest.FixtureRequest) -> Renderer:
    return get_renderer("role_colon", request.getfixturevalue(request.param))


def _read(renderer: Renderer, text: str, *controls: str) -> tuple[str, Termination]:
    ids = [*renderer.tokenizer.encode(text), *(renderer.tokenizer.control_tokens[name] for name in controls)]
    parsed = renderer.parse_response(ids)
    return parsed.message.text, parsed.termination


@pytest.mark.parametrize(
    ("text", "answer", "termination"),
    [
        (" Paris.\n\nUser:", "Paris.", Termination.STOP_SEQUENCE),
        (" Paris.\n\nUser: And Rome?\n\nUser:", "Paris.", Termination.STOP_SEQUENCE),
        (" Paris.\n\n\n\nUser:", "Paris.\n\n", Termination.STOP_SEQUENCE),
        ("  Paris.\n\nUser:", " Paris.", Termination.STOP_SEQUENCE),
        ("Paris.\n\nUser:", "Paris.", Termination.STOP_SEQUENCE),
        ("\n\nUser:", "", Termination.STOP_SEQUENCE),
        (" Paris.\n\n", "Paris.", Termination.MALFORMED),
        (" Paris", "Paris", Termination.MALFORMED),
        (" User: Paris", "User: Paris", Termination.MALFORMED),
        ("", "", Termination.MALFORMED),
    ],
)
def test_an_answer_ends_at_the_first_hand_over(
    role_colon: Renderer, text: str, answer: str, termination: Termination
) -> None:
    assert _read(role_colon, text) == (answer, termination)


def test_an_end_of_text_ends_an_answer_too(role_colon: Renderer) -> None:
    assert _read(role_colon, " Paris.\n\n", "<|im_end|>") == ("Paris.", Termination.END_OF_TEXT)


def test_a_stream_shows_nothing_of_the_stop_and_takes_nothing_after_it(role_colon: Renderer) -> None:
    sampled = iter([*role_colon.tokenizer.encode(" One.\n\nTwo.\n\nUser:"), 5, 6])
    *shown, parsed = role_colon.parse_stream(sampled)
    assert "".join(delta.text for delta in shown) == "One.\n\nTwo."
    assert len(shown) > 2
    assert parsed.message.text == "One.\n\nTwo."
    assert list(sampled) == [5, 6]


def test_what_might_have_been_a_stop_is_shown_in_the_end(role_colon: Renderer) -> None:
    *shown, _ = role_colon.parse_stream(role_colon.tokenizer.encode(" One.\n\nUse"))
    assert "".join(delta.text for delta in shown) == "One.\n\nUse"


def test_a_stream_never_shows_half_a_character(smollm2: FastTokenizer) -> None:
    ids = smollm2.encode("👩‍🚀日本")
    assert len(ids) > 5
    *shown, parsed = get_renderer("smollm2", smollm2).parse_stream([*ids, smollm2.control_tokens["<|im_end|>"]])
    assert not any("\N{REPLACEMENT CHARACTER}" in delta.text for delta in shown)
    assert "".join(delta.text for delta in shown) == parsed.message.text == "👩‍🚀日本"
