"""A model's folder says which renderer it was trained with, and is believed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crucible_train.errors import ConfigError, ModelError
from crucible_train.renderers import FastTokenizer, RendererRecord, get_renderer, renderer_for, renderer_name
from crucible_train.renderers.record import RECORD_FILE

TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture
def trained(tmp_path: Path, smollm2: FastTokenizer) -> Callable[..., Path]:
    """A folder that was trained with a renderer."""

    def write(name: str, **options: Any) -> Path:
        folder = tmp_path / "Qwen3-8B"
        folder.mkdir()
        record = RendererRecord.of(name, get_renderer(name, smollm2, **options))
        (folder / RECORD_FILE).write_bytes(record.to_bytes())
        return folder

    return write


@pytest.mark.parametrize(
    ("name", "options"),
    [("smollm2", {}), ("chat_template", {"template": TEMPLATE, "greeting": "ü"}), ("llama3_2", {})],
)
def test_a_record_is_read_as_it_was_written(
    name: str, options: dict[str, Any], trained: Callable[..., Path], smollm2: FastTokenizer
) -> None:
    folder = trained(name, **options)
    record = RendererRecord.from_folder(folder)
    assert record == RendererRecord(name, get_renderer(name, smollm2, **options).options, smollm2.sha256)
    assert set(json.loads((folder / RECORD_FILE).read_text())) == {"name", "options", "tokenizer_sha256"}


def test_a_folder_without_the_file_has_no_record(tmp_path: Path) -> None:
    assert RendererRecord.from_folder(tmp_path) is None
    assert RendererRecord.from_folder(tmp_path / "nowhere") is None


def test_a_folder_decides_its_renderer_and_options_whatever_it_is_called(
    trained: Callable[..., Path], smollm2: FastTokenizer
) -> None:
    folder = trained("chat_template", template=TEMPLATE)
    assert renderer_name(str(folder), smollm2) == "chat_template"
    renderer = get_renderer(str(folder), smollm2)
    assert (renderer.name, renderer.options) == ("chat_template", {"template": TEMPLATE})


def test_a_renderer_that_is_asked_for_by_its_name_alone_knows_no_folder(
    trained: Callable[..., Path], smollm2: FastTokenizer
) -> None:
    trained("chat_template", template=TEMPLATE)
    assert get_renderer("smollm2", smollm2).name == "smollm2"


def test_the_same_wish_is_no_mismatch(trained: Callable[..., Path], smollm2: FastTokenizer) -> None:
    folder = trained("llama3_2", date_string="26 Jul 2024")
    for options in ({}, {"date_string": "26 Jul 2024"}, {"tools_in_user_message": True}):
        name, renderer = renderer_for("x", folder, "llama3_2", smollm2, options)
        assert (name, renderer.options["date_string"]) == ("llama3_2", "26 Jul 2024")


@pytest.mark.parametrize(
    ("wanted", "options", "error"),
    [
        (
            "smollm2",
            {},
            "data.renderer: 'smollm2' is asked for, but FOLDER was trained with 'llama3_2'; leave the field",
        ),
        (
            None,
            {"date_string": "1 Jan 2026"},
            "data.renderer_options.date_string: '1 Jan 2026' is asked for, but FOLDER was trained with '26 Jul 2024'; ",
        ),
        (
            "llama3_2",
            {"tools_in_user_message": False},
            "data.renderer_options.tools_in_user_message: False is asked for, but FOLDER was trained with True; ",
        ),
        (None, {"volume": 11}, "data.renderer_options: llama3_2: got an unexpected keyword argument 'volume'"),
    ],
)
def test_another_wish_is_an_error_that_names_the_field_and_both_values(
    wanted: str | None,
    options: dict[str, Any],
    error: str,
    trained: Callable[..., Path],
    smollm2: FastTokenizer,
) -> None:
    folder = trained("llama3_2", date_string="26 Jul 2024")
    with pytest.raises(ConfigError) as raised:
        renderer_for("x", folder, wanted, smollm2, options)
    assert str(raised.value).startswith(error.replace("FOLDER", str(folder)))
    if "trained with" in error:
        assert str(raised.value).endswith(
            "leave the field out, or remove renderer.json from that folder to use another format all the same"
        )
    (folder / RECORD_FILE).unlink()
    if wanted is not None:
        assert renderer_for("x", folder, wanted, smollm2, options)[0] == wanted


def test_another_tokenizer_is_an_error(trained: Callable[..., Path], smollm2: FastTokenizer) -> None:
    folder = trained("smollm2")
    other = FastTokenizer(smollm2.definition, {"eos_token": "<|endoftext|>"}, "other")
    with pytest.raises(ModelError) as raised:
        get_renderer(str(folder), other)
    assert str(raised.value) == (
        f"model: {folder}: its tokenizer has the digest {other.sha256[:12]}, but it was trained with "
        f"{smollm2.sha256[:12]}; put that one back, or remove renderer.json from that folder"
    )


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"name": "smollm2"}', '{"name": 1, "options": {}, "tokenizer_sha256": "x"}']
)
def test_a_record_that_cannot_be_read_is_an_error(text: str, tmp_path: Path, smollm2: FastTokenizer) -> None:
    (tmp_path / RECORD_FILE).write_text(text)
    with pytest.raises(ModelError, match=r"renderer\.json: it does not hold a renderer's name, options and tokenizer"):
        get_renderer(str(tmp_path), smollm2)


def test_a_renderer_that_is_not_there_any_more_is_named(tmp_path: Path, smollm2: FastTokenizer) -> None:
    (tmp_path / RECORD_FILE).write_bytes(RendererRecord("mine", {}, smollm2.sha256).to_bytes())
    with pytest.raises(ConfigError, match="was trained with the renderer 'mine', which is not one of chat_template, "):
        get_renderer(str(tmp_path), smollm2)
