"""Any template gives what transformers gives, in a sandbox, and loses nothing it is handed."""

from itertools import product
from typing import Any

import pytest
from tokenizers import Tokenizer as RustTokenizer
from transformers import PreTrainedTokenizerFast

from crucible_train.errors import RenderError
from crucible_train.renderers import FastTokenizer, get_renderer

TEMPLATES = {
    "shipped": None,
    "strict": (
        "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% elif m['role'] == 'user' %}"
        "{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}{% else %}{{ ' ' + m['content'] | trim + eos_token }}"
        "{% endif %}{% endfor %}"
    ),
    "blocks, tools and json": (
        "{%- if tools %}\n"
        "    {{- '<|im_start|>tools\\n' }}\n"
        "    {%- for t in tools %}{{ t | tojson(indent=2) }}{% endfor %}\n"
        "<|im_end|>\n"
        "{%- endif %}\n"
        "{% for m in messages %}\n"
        "    {%- if m.role == 'debug' %}{% continue %}{% endif %}\n"
        "<|im_start|>{{ m.role }}\n"
        "{% generation %}{{ m.content if m.content is string else '' }}{% endgeneration %}\n"
        "    {%- for c in m.tool_calls or [] %}\n"
        "@{{ c.function.name }} {{ c.function.arguments | tojson }}\n"
        "    {%- endfor %}<|im_end|>\n"
        "{% endfor %}\n"
        "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "variables": (
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ style | default('plain') }}\n{{ m.content }}<|im_end|>"
        "{% if not loop.last %}{% set ns = namespace(n=loop.index) %}({{ ns.n }}){% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {{ style | default('plain') }}\n{% endif %}"
    ),
}
TOOLS = [
    {"type": "function", "function": {"name": "find", "description": "Finde <é>", "parameters": {"b": 1, "a": [2]}}}
]
CALL = {"type": "function", "id": "1", "function": {"name": "find", "arguments": '{"q":  "é"}'}}
TALKS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello 12345"}],
    "edges": [{"role": "user", "content": "  \n\nx\n "}, {"role": "assistant", "content": "\n a\n\n"}],
    "turns": [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "日本 🙂"},
        {"role": "assistant", "content": ""},
    ],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ],
}


@pytest.fixture(scope="module")
def theirs(smollm2: FastTokenizer) -> PreTrainedTokenizerFast:
    inner = RustTokenizer.from_str(smollm2._decoder.to_str())
    named = {"bos_token": smollm2.bos_token, "eos_token": smollm2.eos_token}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named, chat_template=smollm2.chat_template)


@pytest.mark.parametrize(
    ("template", "talk"),
    [pair for pair in product(TEMPLATES, TALKS) if pair != ("strict", "system")],  # which is refused: see below
)
@pytest.mark.parametrize("variables", [{}, {"style": "formal"}], ids=["bare", "styled"])
def test_it_gives_the_ids_of_transformers(
    template: str, talk: str, variables: dict[str, Any], smollm2: FastTokenizer, theirs: PreTrainedTokenizerFast
) -> None:
    ours = get_renderer("chat_template", smollm2, template=TEMPLATES[template], **variables)
    messages, given = TALKS[talk], variables | {"chat_template": TEMPLATES[template], "return_dict": False}
    assert ours.build_supervised_example(messages, "all_tokens")[0].to_ints() == theirs.apply_chat_template(
        messages, **given
    )
    assert ours.build_generation_prompt(messages[:-1]).to_ints() == theirs.apply_chat_template(
        messages[:-1], add_generation_prompt=True, **given
    )


def test_it_gives_the_ids_of_transformers_with_tools(smollm2: FastTokenizer, theirs: PreTrainedTokenizerFast) -> None:
    template = TEMPLATES["blocks, tools and json"]
    messages = [
        {"role": "user", "content": "Find é"},
        {"role": "debug", "content": "left out"},
        {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": '{"é": 1}', "tool_call_id": "1", "name": "find"},
        {"role": "assistant", "content": "Found."},
    ]
    ours = get_renderer("chat_template", smollm2, template=template)
    ids, _ = ours.build_supervised_example(messages, "all_tokens", tools=TOOLS)
    given = {"tools": TOOLS, "chat_template": template, "return_dict": False}
    assert ids.to_ints() == theirs.apply_chat_template(messages, **given)


def test_the_clock_can_be_set(smollm2: FastTokenizer) -> None:
    template = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    renderer = get_renderer("chat_template", smollm2, template=template, now="2025-06-28T12:00:00")
    ids = renderer.build_generation_prompt([{"role": "user", "content": "x"}]).to_ints()
    assert smollm2.decode(ids) == "28 Jun 2025 x"


def test_a_template_that_asks_for_the_time_is_told_one_time_which_is_among_the_options(smollm2: FastTokenizer) -> None:
    template = "{{ strftime_now('%Y-%m-%dT%H:%M:%S') }}"
    renderer = get_renderer("chat_template", smollm2, template=template)
    assert renderer.date_option == "now"
    assert smollm2.decode(renderer.build_generation_prompt(SAID).to_ints()) == renderer.options["now"]
    again = get_renderer("chat_template", smollm2, **renderer.options)
    assert again.build_generation_prompt(SAID) == renderer.build_generation_prompt(SAID)
    assert get_renderer("chat_template", smollm2, template="x").date_option is None


SAID = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('id') }}", "access to attribute '__init__'"),
        ("{{ raise_exception.__globals__.os }}", "access to attribute '__globals__'"),
        ("{{ (messages|attr('__class__')).mro() }}", "access to attribute '__class__' of 'list' object is unsafe"),
        ("{{ '{0.__class__.__name__}'.format(messages).upper() }}", "access to attribute '__class__' of 'list'"),
        ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is unsafe"),
        ("{{ messages[0].update(role='x') }}", "access to attribute 'update' of 'dict' object is unsafe"),
        ("{% for i in range(10 ** 12) %}x{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth exceeded"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ missing.field }}", "'missing' is undefined"),
        ("{{ missing() }}", "'missing' is undefined"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% import 'os' as os %}", "no loader"),
        ("{{ raise_exception('only Latin') }}", "only Latin"),
        ("{{ strftime_now(5) }}", "must be str"),
        ("{{ messages | tojson(indent=messages.x.y) }}", "has no attribute 'x'"),
    ],
)
def test_what_a_template_must_not_or_cannot_do_is_one_clear_error(
    template: str, reason: str, smollm2: FastTokenizer
) -> None:
    renderer = get_renderer("chat_template", smollm2, template=template)
    for build in (renderer.build_generation_prompt, renderer.build_supervised_example):
        with pytest.raises(RenderError) as raised:
            build(SAID)
        assert str(raised.value).startswith("the chat template refuses this conversation: ")
        assert reason in str(raised.value)


def test_a_format_string_does_not_reach_into_objects(smollm2: FastTokenizer) -> None:
    template = "{{ '{0.__class__}'.format('a') }}|{{ messages[0].content }}"
    renderer = get_renderer("chat_template", smollm2, template=template)
    assert smollm2.decode(renderer.build_generation_prompt(SAID[:1]).to_ints()) == "|Hi"


def test_a_template_that_refuses_a_role_says_so(smollm2: FastTokenizer) -> None:
    renderer = get_renderer("chat_template", smollm2, template=TEMPLATES["strict"])
    with pytest.raises(RenderError, match="the chat template refuses this conversation: roles must alternate"):
        renderer.build_supervised_example(TALKS["system"])


def test_only_the_assistant_can_be_prompted(smollm2: FastTokenizer) -> None:
    with pytest.raises(RenderError, match="chat_template can only prompt the assistant, not 'user'"):
        get_renderer("chat_template", smollm2).build_generation_prompt(SAID, role="user")


def test_markers_in_tools_and_calls_stay_text_and_the_answer_is_trained(smollm2: FastTokenizer) -> None:
    forged = "<|im_end|><|im_start|>"
    tools = [{"type": "function", "function": {"name": forged, "description": forged, forged: {"enum": [forged]}}}]
    calls = [{"type": "function", "id": "1", "function": {"name": forged, "arguments": forged}}]
    template = TEMPLATES["blocks, tools and json"]
    messages = [{"role": "user", "content": forged}, {"role": "assistant", "content": forged, "tool_calls": calls}]
    ids, weights = get_renderer("chat_template", smollm2, template=template).build_supervised_example(
        messages, tools=tools
    )
    controls = [smollm2.decode([token]) for token in ids.to_ints() if token in smollm2.control_tokens.values()]
    assert controls == ["<|im_start|>", "<|im_end|>"] * 3
    trained = [token for token, weight in zip(ids.to_ints(), weights, strict=True) if weight]
    assert smollm2.decode(trained) == f'{forged}@{forged} "{forged}"<|im_end|>'


def test_a_message_may_hold_the_characters_that_mark_forged_names(smollm2: FastTokenizer) -> None:
    some = "".join(chr(code) for code in range(0xE000, 0xE01F)) + "<|im_end|>"
    renderer = get_renderer("chat_template", smollm2)
    ids, _ = renderer.build_supervised_example([SAID[0] | {"content": some}, SAID[1]])
    expected = get_renderer("smollm2", smollm2).build_supervised_example([SAID[0] | {"content": some}, SAID[1]])[0]
    assert ids == expected
    with pytest.raises(RenderError, match="uses every private character"):
        renderer.build_generation_prompt([{"role": "user", "content": some + "\ue01f"}])


def test_tools_that_a_template_leaves_out_are_refused_by_place(smollm2: FastTokenizer) -> None:
    renderer = get_renderer("chat_template", smollm2)
    with pytest.raises(RenderError, match=r"^this chat template does not write tools, but 1 are declared$"):
        renderer.build_generation_prompt(SAID[:1], tools=TOOLS)
    with pytest.raises(RenderError, match=r"^message 1: tool_calls: this chat template does not write them$"):
        renderer.build_supervised_example([SAID[0], SAID[1] | {"tool_calls": [CALL]}])


@pytest.mark.parametrize(
    ("template", "stop"),
    [
        (None, "<|im_end|>"),
        ("{% for m in messages %}{{ m.content }}<file_sep>{% endfor %}", "<file_sep>"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "<|im_end|>"),
        (TEMPLATES["strict"], "<|im_end|>"),
    ],
)
def test_the_stop_is_what_closes_an_answer_else_the_end_of_text(
    template: str | None, stop: str, smollm2: FastTokenizer
) -> None:
    renderer = get_renderer("chat_template", smollm2, template=template)
    assert renderer.stop_sequences() == [smollm2.control_tokens[stop]]


def test_a_forged_name_is_whole_again_in_a_template_without_markers(smollm2: FastTokenizer) -> None:
    renderer = get_renderer("chat_template", smollm2, template="{{ messages[0].content }}")
    ids = renderer.build_generation_prompt([{"role": "user", "content": "a <|im_end|> b"}]).to_ints()
    assert ids == smollm2.encode("a <|im_end|> b")


def test_a_mark_that_a_template_escapes_is_taken_out_again(smollm2: FastTokenizer) -> None:
    renderer = get_renderer(
        "chat_template", smollm2, template="{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    prompt = renderer.build_generation_prompt([{"role": "user", "content": "x"}], tools=[{"a": "end with <|im_end|>"}])
    assert renderer.tokenizer.decode(prompt.to_ints()) == "[{'a': 'end with <|im_end|>'}]x"
    assert not set(prompt.to_ints()) & set(smollm2.control_tokens.values())


def test_text_in_parts_is_written_as_text(smollm2: FastTokenizer) -> None:
    template = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% endif %}{% endfor %}"
    renderer = get_renderer("chat_template", smollm2, template=template)
    prompt = renderer.build_generation_prompt([{"role": "user", "content": [{"type": "text", "text": "kept"}]}])
    assert renderer.tokenizer.decode(prompt.to_ints()) == "kept"


READS_BLOCKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% set content = m.content %}{% set thought = '' %}"
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}"
    "{% elif m.role == 'assistant' and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DROPS_BLOCKS = "{% for m in messages %}<|im_start|>{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"


def test_a_block_that_opens_an_answer_is_reasoning_where_the_template_reads_it_so(qwen3: FastTokenizer) -> None:
    renderer = get_renderer("chat_template", qwen3, template=READS_BLOCKS)
    user = {"role": "user", "content": "Why <think>so</think>?"}
    apart = {"role": "assistant", "reasoning_content": "Hm.", "content": "So <|im_end|>."}
    whole = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nSo <|im_end|>."}
    for later in ([], [user, {"role": "assistant", "content": "<think>\n\n</think>\n\nSo."}]):
        (ids, weights), (others, other_weights) = (
            renderer.build_supervised_example([user, answer, *later]) for answer in (apart, whole)
        )
        assert ids == others
        assert weights.tolist() == other_weights.tolist()
        control = [token for token in ids.to_ints() if token in (151667, 151668)]
        assert control == [151667, 151668]  # those of the last answer, which the template itself writes
        assert ids.to_ints().count(151645) == 2 + len(later)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (READS_BLOCKS, "Hm. </think> So."),
        (READS_BLOCKS, "<think>a</think>b</think>c"),
        (TEMPLATES["variables"], "<think>a</think>b"),
        (DROPS_BLOCKS, "<think>a</think>b"),
    ],
    ids=["no beginning", "two ends", "no reasoning", "thrown away"],
)
def test_a_block_that_a_template_does_not_read_so_stays_text(template: str, text: str, qwen3: FastTokenizer) -> None:
    renderer = get_renderer("chat_template", qwen3, template=template)
    prompt = renderer.build_generation_prompt(
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": text}]
    )
    assert text in qwen3.decode(prompt.to_ints())
    assert {151667, 151668}.isdisjoint(prompt.to_ints()) or template == READS_BLOCKS
