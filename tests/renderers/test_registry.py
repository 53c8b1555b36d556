"""Which renderer a name or a model gets."""

from collections.abc import Iterator

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from crucible_train.errors import ConfigError, ModelError
from crucible_train.renderers import (
    FastTokenizer,
    get_renderer,
    list_renderers,
    register_renderer,
    registry,
    renderer_name,
)
from crucible_train.renderers.smollm2 import SmolLM2


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    with monkeypatch.context() as patch:
        patch.setattr(registry, "_RENDERERS", dict(registry._RENDERERS))
        yield


@pytest.fixture(scope="module")
def without_template(smollm2: FastTokenizer) -> FastTokenizer:
    return FastTokenizer(smollm2.definition, {"eos_token": "<|im_end|>"}, "plain")


@pytest.mark.parametrize("name", list_renderers())
def test_a_renderer_is_had_by_its_name(name: str, smollm2: FastTokenizer) -> None:
    assert get_renderer(name, smollm2).name == name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2"),
        ("/models/smollm2-360m", "smollm2"),
        ("someone/a-new-model", "chat_template"),
        ("runs/x/package", "chat_template"),
    ],
)
def test_a_model_gets_its_family_or_its_own_template(model: str, name: str, smollm2: FastTokenizer) -> None:
    assert renderer_name(model, smollm2) == name
    assert get_renderer(model, smollm2).name == name


def test_a_model_without_template_is_answered_with_the_names_there_are(without_template: FastTokenizer) -> None:
    with pytest.raises(ConfigError) as raised:
        get_renderer("someone/base-model", without_template)
    names = ", ".join(list_renderers())
    assert str(raised.value) == f"data.renderer: 'someone/base-model' has no chat template; choose one of {names}"


def test_a_template_is_asked_for_where_the_tokenizer_has_none(without_template: FastTokenizer) -> None:
    with pytest.raises(ConfigError, match=r"^data.renderer: plain has no chat template; give renderer_options.templ"):
        get_renderer("chat_template", without_template)
    assert get_renderer("chat_template", without_template, template="{{ messages[0].content }}").name == "chat_template"


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("smollm2", {"system": "x"}, "data.renderer_options: smollm2: got an unexpected keyword argument 'system'"),
        ("chat_template", {"now": "noon"}, "data.renderer_options.now: not an ISO 8601 time: 'noon'"),
        ("chat_template", {"template": "{% for %}"}, "chat template, line 1: "),
        ("chat_template", {"template": "a\n{{ b|c }}"}, "chat template, line 2: No filter named 'c'."),
        ("chat_template", {"template": 5}, "chat template: must be text, not int"),
        ("chat_template", {"template": "{{" + "(" * 3000 + ")" * 3000 + "}}"}, "chat template: nested too deeply"),
    ],
)
def test_a_wrong_option_is_named(name: str, options: dict[str, object], error: str, smollm2: FastTokenizer) -> None:
    with pytest.raises(ConfigError) as raised:
        get_renderer(name, smollm2, **options)
    assert str(raised.value).startswith(error)


@pytest.mark.usefixtures("own_registry")
def test_a_registered_renderer_is_listed_and_made_with_its_options(smollm2: FastTokenizer) -> None:
    class Shouting(SmolLM2):
        name = "shouting"

        def __init__(self, tokenizer: FastTokenizer, volume: int) -> None:
            super().__init__(tokenizer)
            self.volume = volume

    register_renderer("shouting", Shouting)
    assert "shouting" in list_renderers()
    assert get_renderer("shouting", smollm2, volume=11).volume == 11


@pytest.mark.usefixtures("own_registry")
def test_a_name_is_taken_once() -> None:
    with pytest.raises(ConfigError, match="a renderer named 'smollm2' exists already"):
        register_renderer("smollm2", SmolLM2)


def test_the_tokenizers_of_transformers_and_bare_ones_give_the_same_ids(smollm2: FastTokenizer) -> None:
    bare = RustTokenizer.from_str(smollm2._decoder.to_str())
    hugging = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|im_end|>", bos_token="<|im_start|>")
    said = [{"role": "user", "content": "Hi <|im_end|> 12345"}]
    expected = get_renderer("smollm2", smollm2).build_generation_prompt(said)
    assert get_renderer("smollm2", bare).build_generation_prompt(said) == expected
    assert get_renderer("smollm2", hugging).build_generation_prompt(said) == expected
    assert get_renderer("smollm2", hugging).tokenizer is get_renderer("smollm2", hugging).tokenizer


def test_a_template_that_is_changed_on_a_tokenizer_counts_from_then_on() -> None:
    inner = RustTokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    hugging = PreTrainedTokenizerFast(tokenizer_object=inner)
    for template, token in (("a", 0), ("b", 1)):
        hugging.chat_template = template
        prompt = get_renderer("someone/model", hugging).build_generation_prompt([{"role": "user", "content": "x"}])
        assert prompt.to_ints() == [token]


def test_what_is_no_fast_tokenizer_is_refused() -> None:
    with pytest.raises(ModelError, match="a fast tokenizer is needed, not object"):
        get_renderer("smollm2", object())


def test_a_control_token_that_the_tokenizer_lacks_is_named() -> None:
    renderer = get_renderer("smollm2", RustTokenizer(WordLevel({"a": 0}, unk_token="a")))
    for use in (renderer.stop_sequences, lambda: renderer.build_generation_prompt([{"role": "user", "content": "a"}])):
        with pytest.raises(ModelError, match=r"has no control token '<\|im_(start|end)\|>', which this format needs"):
            use()
