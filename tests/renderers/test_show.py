"""``python -m crucible_train.renderers.show``: what a model will see of a row, in the terminal and as a page."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from crucible_train import terminal
from crucible_train.renderers import FastTokenizer, get_renderer
from crucible_train.renderers.view import ShownToken, shown_tokens
from crucible_train.report.conversations import ShownFormat, ShownRow, coloured, colourless, page, visible
from crucible_train.stages.show import main
from crucible_train.types import EncodedTextChunk, ImageChunk, ModelInput

ROOT = Path(__file__).parents[2]
SMOLLM2 = str(ROOT / "crucible_train" / "assets" / "smollm2")
SYSTEM = "‹<|im_start|>›system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face‹<|im_end|>›\n"
SAID = [{"role": "user", "content": "Say <b>&amp;</b> 🙂"}, {"role": "assistant", "content": "Hello\n<|im_end|>"}]
# Answers lose all but their first letter in history, so every turn is an example of its own.
REWRITING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content if loop.last or m.role == 'user' else m.content[:1] }}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [{"messages": SAID}, {"messages": [SAID[0], {**SAID[1], "reasoning_content": "hm"}]}, {"messages": SAID}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setattr(terminal, "_console", None)

    def run(*words: Any) -> tuple[int, str, str]:
        status = main([str(word) for word in words])
        found = capsys.readouterr()
        return status, found.out, found.err

    return run


Show = Callable[..., tuple[int, str, str]]


def test_a_row_is_shown_with_what_is_trained_between_brackets(show: Show, rows: Path) -> None:
    status, out, err = show(rows, "--row", 1)
    assert (status, err) == (0, "")
    head, _, body = out.partition(f"\n{rows}:1\n")
    assert head.splitlines() == [
        "renderer   smollm2",
        "options    none",
        f"tokenizer  {SMOLLM2}",
        "stops at   <|im_end|> (2)",
        "controls   <|im_start|> (1), <|im_end|> (2)",
        "trained    all_assistant_messages",
        "marks      ⟦trained⟧ ‹control token›",
    ]
    assert re.sub(r"^\d+ tokens, \d+ trained$", "N", body, count=1, flags=re.M) == (
        f"N\n{SYSTEM}‹<|im_start|>›user\nSay <b>&amp;</b> 🙂‹<|im_end|>›\n"
        "‹<|im_start|>›assistant\n⟦Hello\n<|im_end|>‹<|im_end|>›⟧\n\n"
    )
    ids, weights = get_renderer("smollm2", FastTokenizer.from_folder(Path(SMOLLM2))).build_supervised_example(SAID)
    assert body.startswith(f"{ids.length} tokens, {int(weights.sum())} trained\n")


def test_a_row_that_cannot_be_rendered_is_shown_with_its_reason_among_the_others(show: Show, rows: Path) -> None:
    status, out, _ = show(rows)
    assert status == 0
    assert f"\n{rows}:2\nproblem    message 1: reasoning_content: smollm2 has no thinking\n" in out
    assert out.count("tokens, ") == 2
    assert out.endswith("\nThese are the first 3 rows; --row N shows another one.\n")


def test_each_of_several_examples_is_shown(show: Show, rows: Path) -> None:
    rows.write_text(json.dumps({"messages": [*SAID, {"role": "user", "content": "More"}, SAID[1]]}) + "\n")
    _, out, _ = show(rows, "--renderer", "chat_template", "--options", json.dumps({"template": REWRITING}))
    first, second = re.split(r"example \d of 2: \d+ tokens, \d+ trained\n", out)[1:]
    assert first == ("user: Say <b>&amp;</b> 🙂‹<|im_end|>›assistant: ⟦Hello\n<|im_end|>‹<|im_end|>›⟧\n")
    assert "assistant: H‹<|im_end|>›user: More‹<|im_end|>›assistant: ⟦Hello" in second


def test_what_is_trained_can_be_chosen(show: Show, rows: Path) -> None:
    _, out, _ = show(rows, "--row", 1, "--train-on", "all_user_and_system_messages")
    assert "‹<|im_start|>›user\n⟦Say <b>&amp;</b> 🙂‹<|im_end|>›⟧\n" in out
    assert "assistant\nHello" in out


def test_a_stop_that_is_a_text_is_shown_quoted(show: Show, rows: Path) -> None:
    _, out, _ = show(rows, "--row", 1, "--renderer", "role_colon", "--tokenizer", SMOLLM2)
    assert '\nstops at   "\\n\\nUser:"\n' in out


def test_a_model_that_was_trained_here_is_shown_in_its_own_format(
    show: Show, rows: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from crucible_train.renderers import RendererRecord
    from crucible_train.renderers.record import RECORD_FILE

    tokenizer = FastTokenizer.from_folder(tiny_model)
    tokenizer.to_folder(tmp_path / "model")
    record = RendererRecord.of("smollm2", get_renderer("smollm2", tokenizer))
    (tmp_path / "model" / RECORD_FILE).write_bytes(record.to_bytes())
    assert "renderer   smollm2\n" in show(rows, "--model", tmp_path / "model")[1]
    assert "renderer   chat_template\n" in show(rows, "--model", tiny_model)[1]
    status, _, err = show(rows, "--model", tmp_path / "model", "--renderer", "role_colon")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("error: data.renderer: 'role_colon' is asked for, but ")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "the following arguments are required: FILE (--help says what there is)"),
        (["ROWS", "--row", "x"], "argument --row: invalid int value: 'x' (--help says what there is)"),
        (["ROWS", "--row", "0"], "--row: 0 is asked for, but rows count from 1"),
        (["ROWS", "--row", "4"], "--row: 4 is asked for, but ROWS has 3"),
        (["ROWS", "--row", "2"], "ROWS:2: message 1: reasoning_content: smollm2 has no thinking"),
        (["ROWS", "--renderer", "qwen33"], "--renderer: 'qwen33' is unknown; known are auto, chat_template, "),
        (["ROWS", "--options", "{"], "--options: not JSON: "),
        (["ROWS", "--options", "[1]"], "--options: it must be a JSON object, not [1]"),
        (["ROWS", "--options", '{"a": 1}'], "data.renderer_options: smollm2: got an unexpected keyword argument 'a'"),
        (["ROWS", "--train-on", "everything"], "train_on: 'everything' is unknown; known are last_assistant_message, "),
        (["ROWS", "--model", "/nowhere"], "model: /nowhere: there is no such file or folder"),
        (["ROWS", "--tokenizer", "/nowhere", "--renderer", "smollm2"], "/nowhere: no tokenizer.json; a fast tokenizer"),
        (["ROWS", "--tokenizer", SMOLLM2], "--renderer: say which, since --tokenizer names no model that would have"),
        (["ROWS", "--tokenizer", "a", "--model", "b"], "argument --model: not allowed with argument --tokenizer"),
        (["ROWS", "--html", "/nowhere/at/all.html"], "[Errno "),
        (["/nowhere.jsonl"], "dataset: /nowhere.jsonl: "),
        (["EMPTY"], "EMPTY: it holds no rows"),
        (["COLUMNS"], "COLUMNS:1: the columns are a, and no conversation format has them. "),
    ],
)
def test_wrong_input_is_answered_in_a_line(
    words: list[str], error: str, show: Show, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "columns.jsonl").write_text('{"a": 1}\n')
    if "/nowhere/at/all.html" in words:
        words = [*words[:-1], str(rows / "below" / "a-file.html")]
    places = {"ROWS": rows, "EMPTY": tmp_path / "empty.jsonl", "COLUMNS": tmp_path / "columns.jsonl"}
    for name, path in places.items():
        error = error.replace(name, str(path))
    status, out, err = show(*(places.get(word, word) for word in words))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {error}")


def _in_a_terminal(words: list[str], **environment: str) -> str:
    """What the command writes to a terminal."""
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    command = [sys.executable, "-m", "crucible_train.renderers.show", *words]
    env = {**kept, "TERM": "xterm-256color", **environment}
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=ROOT, env=env)
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    assert process.wait() == 0
    return b"".join(parts).decode()


def test_a_terminal_gets_colours_unless_it_asks_for_none(rows: Path) -> None:
    text = _in_a_terminal([str(rows), "--row", "1"])
    assert "\x1b[1;32mHello" in text
    assert "\x1b[7m<|im_start|>" in text
    assert "\x1b[1;7;32m<|im_end|>" in text
    assert "⟦" not in text
    plain = _in_a_terminal([str(rows), "--row", "1"], NO_COLOR="1")
    assert "\x1b" not in plain
    assert "⟦Hello" in plain


def test_what_a_terminal_would_obey_is_shown_instead(show: Show, rows: Path) -> None:
    said = [{"role": "user", "content": "\x1b[31mred\x07\r\u202eleft\x9b\t."}, {"role": "assistant", "content": "a"}]
    rows.write_text(json.dumps({"messages": said}) + "\n")
    _, out, _ = show(rows)
    assert "\n␛[31mred␇␍⟨U+202E⟩left⟨U+009B⟩␉.‹<|im_end|>›" in out


@given(st.text(max_size=20))
@settings(max_examples=300, deadline=None)
def test_nothing_but_new_lines_moves_the_cursor(text: str) -> None:
    seen = visible(text)
    assert all(character == "\n" or character >= " " for character in seen)
    assert not set(seen) & set("\x7f\x9b\u202e\u2066\u200f")
    if text.replace("\n", "").isprintable():
        assert seen == text


def test_every_token_is_shown_once_and_characters_are_whole(smollm2: FastTokenizer, qwen3: FastTokenizer) -> None:
    said = [{"role": "user", "content": "日本語 👩‍🚀 <|im_end|> नमस्ते"}, {"role": "assistant", "content": "🙂🙂"}]
    for tokenizer in (smollm2, qwen3):
        example = get_renderer("smollm2", tokenizer).build_supervised_example(said)
        shown = shown_tokens(example, tokenizer)
        assert [number for token in shown for number in token.ids] == example[0].to_ints()
        assert "".join(token.text for token in shown) == tokenizer.decode(example[0].to_ints())
        assert not any("\ufffd" in token.text for token in shown)
        assert "".join(token.text for token in shown if token.is_trained) == "🙂🙂<|im_end|>"
        controls = [token.text for token in shown if token.is_control]
        assert controls == ["<|im_start|>", "<|im_end|>"] * 3


def test_bytes_that_are_no_character_are_shown_all_the_same(smollm2: FastTokenizer) -> None:
    ids = smollm2.encode("🙂")[:1]
    [token] = shown_tokens((ModelInput.from_ints(ids), np.ones(1, np.float32)), smollm2)
    assert token == ShownToken("\ufffd", tuple(ids), is_trained=True, is_control=False)


def test_the_places_of_a_picture_are_counted(smollm2: FastTokenizer) -> None:
    picture = ImageChunk(b"x", "png", 3, smollm2.control_tokens["<|im_start|>"])
    whole = ModelInput((EncodedTextChunk([260]), picture))
    shown = shown_tokens((whole, np.zeros(4, np.float32)), smollm2)
    assert shown[1] == ShownToken("<|im_start|>", (1, 1, 1), is_trained=False, is_control=True)
    assert colourless(shown[1:]) == "‹<|im_start|>×3›"


def test_brackets_stand_round_whole_stretches() -> None:
    tokens = [
        ShownToken("a", (1,), is_trained=False, is_control=False),
        ShownToken("b", (2,), is_trained=True, is_control=False),
        ShownToken("<e>", (3,), is_trained=True, is_control=True),
    ]
    assert colourless(tokens) == "a⟦b‹<e>›⟧"
    assert colourless(tokens, marks_controls=False) == "a⟦b<e>⟧"
    assert coloured(tokens).plain == "ab<e>"
    assert [str(span.style) for span in coloured(tokens).spans] == ["bold green", "bold green reverse"]


class _Page(HTMLParser):
    """The elements of a page with their text; whatever it names outside itself."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.marked = ""
        self.outside: list[str] = []
        self.titles: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "i"):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")
        self.outside += [value or "" for name, value in attrs if name in ("src", "href", "onclick", "style")]
        self.titles += [value or "" for name, value in attrs if name == "title"]

    def handle_endtag(self, tag: str) -> None:
        if tag != "i":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data
        if "mark" in self.open and "pre" in self.open:
            self.marked += data


def _read(text: str) -> _Page:
    found = _Page()
    found.feed(text)
    assert found.open == []
    return found


def test_a_page_holds_the_same_text_and_marks(show: Show, rows: Path, tmp_path: Path) -> None:
    status, out, _ = show(rows, "--html", tmp_path / "new" / "page.html")
    assert (status, out) == (0, f"written    {tmp_path / 'new' / 'page.html'}\n")
    text = (tmp_path / "new" / "page.html").read_text()
    found = _read(text)
    said = "Say <b>&amp;</b> 🙂"
    plain = SYSTEM.replace("‹", "").replace("›", "")
    assert found.texts["pre"] == 2 * [
        f"{plain}<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\nHello\n<|im_end|><|im_end|>\n"
    ]
    assert found.marked == 2 * "Hello\n<|im_end|><|im_end|>"
    assert found.texts["h2"] == ["Format", *(f"{rows}:{number}" for number in (1, 2, 3))]
    assert "message 1: reasoning_content: smollm2 has no thinking" in found.texts["p"]
    assert found.texts["title"] == ["rows.jsonl as smollm2 writes it"]
    assert "1" in found.titles
    assert text.startswith('<!doctype html>\n<html lang="en">')
    assert "prefers-color-scheme: dark" in text
    assert not found.outside
    assert "script" not in found.texts
    assert "http" not in text


@given(
    st.lists(st.sampled_from(["</pre>", "<script>", "&lt;", "'\"", "{{ 7*7 }}", "\x00", "\n", "x", "{# #}"])).map(
        "".join
    )
)
@settings(max_examples=100, deadline=None)
def test_no_text_can_leave_its_place_in_a_page(text: str) -> None:
    token = ShownToken(text, (1,), is_trained=True, is_control=False)
    shown = ShownFormat(text, {text: text}, text, [(text, None)], {text: 1}, "all_tokens")
    found = _read(page(shown, [ShownRow(text, [[token]]), ShownRow(text, (), text)], text))
    assert found.texts["pre"] == [visible(text)]
    assert "script" not in found.texts


def test_light_and_dark_have_contrast() -> None:
    """Text on what it stands on: at least 4.5 to 1, as WCAG AA asks."""
    style = page(ShownFormat("r", {}, "t", [], {}, "w"), [], "t")
    light = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})\b", style.partition("@media")[0]))
    dark = light | dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})\b", style.partition("@media")[2]))
    for colours in (light, dark):
        for ink in ("ink", "soft", "control", "bad"):
            assert _contrast(colours[ink], colours["paper"]) >= 4.5
        for ink in ("ink", "soft", "control"):
            assert _contrast(colours[ink], colours["trained"]) >= 4.5


def _contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_are_had_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for console, expected in (
        (Console(force_terminal=True, color_system="256", no_color=False), True),
        (Console(force_terminal=True, color_system="256", no_color=True), False),
        (Console(force_terminal=False), False),
    ):
        monkeypatch.setattr(terminal, "_console", console)
        assert terminal.has_colours() is expected
