"""Which formats have tools of their own."""

import pytest

from crucible_train.errors import ConfigError
from crucible_train.renderers import get_renderer
from crucible_train.rl.tool_syntax import LineSyntax, NativeSyntax, syntax_for
from crucible_train.rl.tools import Tool
from crucible_train.types import ToolCall
from tests.rl.conftest import Scripted


def lookup(word: str, times: int = 1) -> str:
    """Look a word up."""
    return word * times


def echo(word: str) -> str:
    """Say it again."""
    return word


TOOLS = [Tool.of(lookup), Tool.of(echo)]


@pytest.mark.parametrize("name", ["qwen3", "qwen3_instruct", "qwen3_disable_thinking"])
def test_a_format_that_reads_back_a_call_has_tools_of_its_own(name, qwen3_tokenizer):
    assert isinstance(syntax_for(get_renderer(name, qwen3_tokenizer), TOOLS, "auto"), NativeSyntax)


@pytest.mark.parametrize("name", ["smollm2", "role_colon", "chat_template"])
def test_a_format_that_does_not_has_lines(name, smollm2):
    renderer = get_renderer(name, smollm2.tokenizer)
    assert isinstance(syntax_for(renderer, TOOLS, "auto"), LineSyntax)
    with pytest.raises(ConfigError, match="has no tools of its own"):
        syntax_for(renderer, TOOLS, "native")


def test_a_template_that_writes_calls_but_reads_none_back_has_lines(qwen3_tokenizer):
    template = "{{ tools }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.tool_calls }}{% endfor %}"
    renderer = get_renderer("chat_template", qwen3_tokenizer, template=template)
    assert isinstance(syntax_for(renderer, TOOLS, "auto"), LineSyntax)


def test_no_tools_need_no_syntax_of_the_format(qwen3_tokenizer):
    assert isinstance(syntax_for(get_renderer("qwen3_instruct", qwen3_tokenizer), [], "auto"), LineSyntax)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("echo: hi", [("echo", '{"word": "hi"}')]),
        (" echo :  hi there ", [("echo", '{"word": "hi there"}')]),
        ('echo: {"word": "hi"}', [("echo", '{"word": "hi"}')]),
        ('Well.\necho: a\nlookup: {"word": "b"}', [("echo", '{"word": "a"}'), ("lookup", '{"word": "b"}')]),
        ("lookup: b", [("lookup", "b")]),
        ("lookup:", [("lookup", "{}")]),
        ('echo: "quoted" \\', [("echo", '{"word": "\\"quoted\\" \\\\"}')]),
        ("echo it", []),
        ("I echo: it", []),
        ("find: it", []),
        ("", []),
    ],
)
def test_lines_are_read(text, calls, smollm2):
    ids = Scripted(smollm2, lambda _: "").encode(text)
    answer = smollm2.parse_response([*ids, smollm2.stop_sequences()[0]])
    found = LineSyntax().calls(answer, {tool.name: tool for tool in TOOLS})
    assert found == [ToolCall(*call) for call in calls]


def test_lines_are_explained_and_shown():
    syntax = LineSyntax()
    assert syntax.instructions(TOOLS).splitlines()[1:] == [
        'lookup: {"word": "...", "times": "..."}   (Look a word up.)',
        "echo: word   (Say it again.)",
    ]
    assert syntax.shown(ToolCall("echo", '{"word": "a b"}')).text == "echo: a b"
    assert syntax.shown(ToolCall("lookup", '{"word": "a", "times": 2}')).text == 'lookup: {"word": "a", "times": 2}'
    [result] = syntax.results([(ToolCall("echo", "{}"), "1"), ("broken", "error: broken")])
    assert (result.role, result.text) == ("user", "result: 1\nresult: error: broken")


def test_native_results_answer_their_calls():
    first, second = NativeSyntax().results([(ToolCall("echo", "{}", "id1"), "1"), ("broken", "error: broken")])
    assert (first.role, first.name, first.tool_call_id, first.text) == ("tool", "echo", "id1", "1")
    assert (second.role, second.text) == ("tool", "error: broken")
    [alone] = NativeSyntax().results([("broken", "error: broken")])
    assert (alone.role, alone.text) == ("user", "error: broken")
