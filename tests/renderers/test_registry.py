"""Which renderer a name or a model gets."""

from collections.abc import Iterator

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from crucible_train.errors import ConfigError, ModelError
from crucible_train.renderers import (
    FastTokenizer,
    find_renderer,
    get_renderer,
    list_renderers,
    model_names,
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


# What each published model's own template is. ``chat_template`` is that template itself.
MODELS = {
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama3",
    "meta-llama/Llama-3.1-8B-Instruct": "llama3_1",
    "meta-llama/Meta-Llama-3.1-405B-Instruct-FP8": "llama3_1",
    "meta-llama/Llama-3.2-1B-Instruct": "llama3_2",
    "meta-llama/Llama-3.2-3B-Instruct-SpinQuant_INT4_EO8": "llama3_2",
    "meta-llama/Llama-3.2-11B-Vision-Instruct": "chat_template",
    "meta-llama/Llama-3.3-70B-Instruct": "llama3_1",
    "meta-llama/Llama-3.1-8B": "chat_template",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": "chat_template",
    "meta-llama/Llama-Guard-3-8B": "chat_template",
    "nvidia/Llama-3.1-Nemotron-70B-Instruct-HF": "chat_template",
    "NousResearch/Hermes-3-Llama-3.1-8B": "chat_template",
    "allenai/Llama-3.1-Tulu-3-8B": "chat_template",
    "Qwen/Qwen3-0.6B": "qwen3",
    "Qwen/Qwen3-30B-A3B": "qwen3",
    "Qwen/Qwen3-8B-Base": "qwen3",
    "Qwen/Qwen3-32B-AWQ": "qwen3",
    "Qwen/Qwen3-4B-Instruct-2507": "qwen3_instruct",
    "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8": "qwen3_instruct",
    "Qwen/Qwen3-4B-Thinking-2507": "chat_template",
    "Qwen/Qwen3-VL-2B-Instruct": "qwen3_vl_instruct",
    "Qwen/Qwen3-VL-235B-A22B-Instruct": "qwen3_vl_instruct",
    "Qwen/Qwen3-VL-30B-A3B-Thinking": "qwen3_vl",
    "Qwen/Qwen3-VL-Embedding-2B": "chat_template",
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": "chat_template",
    "Qwen/Qwen3-Next-80B-A3B-Instruct": "chat_template",
    "Qwen/Qwen3-Embedding-0.6B": "chat_template",
    "Qwen/Qwen3-Reranker-4B": "chat_template",
    "Qwen/Qwen3-Omni-30B-A3B-Instruct": "chat_template",
    "Qwen/Qwen3.5-4B": "chat_template",
    "Qwen/Qwen2.5-7B-Instruct": "chat_template",
    "Qwen/QwQ-32B": "chat_template",
    "deepseek-ai/DeepSeek-V3": "deepseekv3",
    "deepseek-ai/DeepSeek-V3-Base": "deepseekv3",
    "deepseek-ai/DeepSeek-V3-0324": "chat_template",
    "deepseek-ai/DeepSeek-V3.1": "deepseekv3_1",
    "deepseek-ai/DeepSeek-V3.1-Base": "deepseekv3_1",
    "deepseek-ai/DeepSeek-V3.1-Terminus": "chat_template",
    "deepseek-ai/DeepSeek-V3.2-Exp": "chat_template",
    "deepseek-ai/DeepSeek-V2.5": "chat_template",
    "deepseek-ai/DeepSeek-R1": "deepseek_r1",
    "deepseek-ai/DeepSeek-R1-0528": "chat_template",
    "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B": "chat_template",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": "chat_template",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": "chat_template",
    "moonshotai/Kimi-K2-Instruct": "kimi_k2",
    "moonshotai/Kimi-K2-Instruct-0905": "kimi_k2",
    "moonshotai/Kimi-K2-Thinking": "kimi_k2_thinking",
    "moonshotai/Kimi-K2.5": "chat_template",
    "moonshotai/Kimi-K2-Base": "chat_template",
    "openai/gpt-oss-20b": "gpt_oss_medium_reasoning",
    "openai/gpt-oss-120b": "gpt_oss_medium_reasoning",
    "openai/gpt-oss-safeguard-20b": "chat_template",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2",
    "smollm2-135m-instruct": "smollm2",
    "HuggingFaceTB/SmolLM-135M-Instruct": "chat_template",
    "HuggingFaceTB/SmolLM3-3B": "chat_template",
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": "chat_template",
}
# The same model by other names.
OTHER_NAMES = {
    "qwen3-8b": "qwen3",
    "QWEN/QWEN3-8B": "qwen3",
    "/models/Qwen3-8B/": "qwen3",
    "~/models/Qwen3-4B-Instruct-2507": "qwen3_instruct",
    "C:\\models\\Qwen3-8B": "qwen3",
    "/cache/models--Qwen--Qwen3-8B/snapshots/895c8d1": "qwen3",
    "/cache/models--meta-llama--Llama-3.2-1B-Instruct/snapshots/895c8d1/": "llama3_2",
    "unsloth/Qwen3-8B-unsloth-bnb-4bit": "qwen3",
    "files/Qwen_Qwen3-8B-Q4_K_M.gguf": "qwen3",
    "meta-llama_Llama-3.3-70B-Instruct-Q4_K_M.gguf": "llama3_1",
    "DeepSeek-V3.Q4_K_M.gguf": "deepseekv3",
    "DeepSeek-V3.1-Q4_K_M.gguf": "deepseekv3_1",
    "SmolLM2-135M-Instruct.Q4_1.gguf": "smollm2",
    "/qwen3-8b-experiments/step-100": "chat_template",
    "/Qwen3-8B/snapshots/895c8d1": "qwen3",
    "/Qwen3-8B/step-100": "chat_template",
    "": "chat_template",
    "/": "chat_template",
}


@pytest.mark.parametrize(("model", "name"), [*MODELS.items(), *OTHER_NAMES.items()])
def test_a_model_gets_its_family_or_its_own_template(model: str, name: str, smollm2: FastTokenizer) -> None:
    assert renderer_name(model, smollm2) == name
    assert get_renderer(model, smollm2).name == name


def test_every_renderer_that_a_model_gets_is_there() -> None:
    assert {renderer for _, renderer in model_names._TABLE} <= set(list_renderers())


@pytest.mark.parametrize(
    ("alias", "name"),
    [("deepseekv3_disable_thinking", "deepseekv3_1"), ("deepseekv3_thinking", "deepseekv3_1_thinking")],
)
def test_an_alias_is_another_name(alias: str, name: str, smollm2: FastTokenizer) -> None:
    assert find_renderer(alias) == renderer_name(alias, smollm2) == name
    assert get_renderer(alias, smollm2).name == name
    assert alias not in list_renderers()


def test_an_unknown_name_is_no_renderer() -> None:
    assert find_renderer("qwen33") is None


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
