"""Pictures in Qwen3-VL: how they are given, how many positions they take, and what cannot be shown."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crucible_train.errors import ConfigError, RenderError
from crucible_train.renderers import FastTokenizer, Renderer, get_renderer
from crucible_train.renderers.images import PictureSize
from crucible_train.types import ImageChunk, ImagePart, Message, TextPart

PAD = "<|image_pad|>"


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen3_vl_instruct"])
def renderer(request: pytest.FixtureRequest, qwen3: FastTokenizer) -> Renderer:
    return get_renderer(request.param, qwen3)


def _encoded(width: int, height: int, form: str = "PNG", mode: str = "RGB") -> bytes:
    made = io.BytesIO()
    Image.new(mode, (width, height)).save(made, form)
    return made.getvalue()


def _chunks(renderer: Renderer, picture: Any) -> tuple[ImageChunk, list[int]]:
    prompt = renderer.build_generation_prompt([Message("user", (TextPart("Look: "), ImagePart(picture)))])
    [chunk] = [chunk for chunk in prompt.chunks if isinstance(chunk, ImageChunk)]
    return chunk, prompt.to_ints()


@pytest.mark.parametrize("form", ["png", "jpeg"])
@pytest.mark.parametrize("give", ["bytes", "path", "text path", "file URL", "data URL"])
def test_a_picture_is_given_in_many_ways(renderer: Renderer, tmp_path: Path, form: str, give: str) -> None:
    data = _encoded(640, 480, form.upper())
    path = tmp_path / "a picture"
    path.write_bytes(data)
    chunk, ids = _chunks(
        renderer,
        {
            "bytes": data,
            "path": path,
            "text path": str(path),
            "file URL": path.as_uri(),
            "data URL": f"data:image/{form};base64,{base64.b64encode(data).decode()}",
        }[give],
    )
    pad = renderer.tokenizer.control_tokens[PAD]
    assert chunk == ImageChunk(data, "png" if form == "png" else "jpeg", 300, pad)
    assert ids.count(pad) == 300
    assert renderer.tokenizer.decode(ids).startswith(
        f"<|im_start|>user\nLook: <|vision_start|>{PAD * 300}<|vision_end|><|im_end|>\n"
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16", "CMYK", "YCbCr", "F"])
def test_a_pillow_image_of_any_kind_is_kept_without_loss(renderer: Renderer, mode: str) -> None:
    image = Image.new(mode, (96, 64))
    chunk, _ = _chunks(renderer, image)
    assert chunk.format == "png"
    with Image.open(io.BytesIO(chunk.data)) as kept:
        assert kept.size == image.size
        expected = image if kept.mode == mode else image.convert("RGB")
        assert kept.tobytes() == expected.tobytes()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "BMP"])
def test_other_formats_become_png(renderer: Renderer, form: str) -> None:
    chunk, _ = _chunks(renderer, _encoded(320, 320, form))
    assert (chunk.format, chunk.expected_tokens) == ("png", 100)
    with Image.open(io.BytesIO(chunk.data)) as kept:
        assert (kept.format, kept.size) == ("PNG", (320, 320))


@given(
    height=st.integers(1, 9000),
    width=st.integers(1, 9000),
    bounds=st.sampled_from([(65_536, 16_777_216), (3136, 1_003_520), (1, 1), (1024, 1024), (4_000_000, 5_000_000)]),
)
@settings(max_examples=300, deadline=None)
def test_pictures_take_as_many_positions_as_the_image_processor_says(
    height: int, width: int, bounds: tuple[int, int]
) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    if max(height, width) > 200 * min(height, width):
        return
    least, most = bounds
    rows, columns = smart_resize(height, width, factor=32, min_pixels=least, max_pixels=most)
    assert PictureSize(least, most).num_positions(height, width) == rows * columns // 32**2


@pytest.mark.parametrize("size", [(640, 480), (33, 47), (1, 150), (5000, 40), (4500, 4000)])
def test_the_image_processor_itself_cuts_as_many_patches(renderer: Renderer, size: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, size={"shortest_edge": 65_536, "longest_edge": 16_777_216}
    )
    image = Image.new("RGB", size)
    chunk, _ = _chunks(renderer, image)
    if size[0] * size[1] < 1_000_000:
        [grid] = processor(images=[image], return_tensors="np")["image_grid_thw"]
        assert chunk.expected_tokens == int(np.prod(grid)) // 4
    assert chunk.expected_tokens == processor.get_number_of_image_patches(size[1], size[0]) // 4


def test_the_bounds_of_the_area_are_options(qwen3: FastTokenizer) -> None:
    renderer = get_renderer("qwen3_vl", qwen3, min_pixels=1024, max_pixels=102_400)
    assert _chunks(renderer, _encoded(640, 640))[0].expected_tokens == 100
    assert _chunks(renderer, _encoded(32, 32))[0].expected_tokens == 1
    assert renderer.options == {
        "min_pixels": 1024,
        "max_pixels": 102_400,
        "strip_thinking_from_history": True,
    }
    again = get_renderer("qwen3_vl", qwen3, **renderer.options)
    assert again.options == renderer.options
    assert get_renderer("qwen3_vl_instruct", qwen3).options == {"min_pixels": 65_536, "max_pixels": 16_777_216}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"min_pixels": 0}, "data.renderer_options.min_pixels: must be a whole number of at least 1, not 0"),
        ({"max_pixels": 1.5}, "data.renderer_options.max_pixels: must be a whole number of at least 1, not 1.5"),
        ({"min_pixels": 9, "max_pixels": 8}, "data.renderer_options.min_pixels: 9 is more than max_pixels, 8"),
        ({"colour": True}, "colour"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(qwen3: FastTokenizer, options: dict[str, Any], expected: str) -> None:
    for name in ("qwen3_vl", "qwen3_vl_instruct"):
        with pytest.raises(ConfigError, match=expected):
            get_renderer(name, qwen3, **options)


def test_where_a_picture_is_only_told_of_its_place_is_kept(renderer: Renderer) -> None:
    told = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    ids = renderer.build_generation_prompt([told])
    assert ids.is_text
    assert ids.to_ints().count(renderer.tokenizer.control_tokens[PAD]) == 1
    assert renderer.build_generation_prompt([Message.of(told).to_dict()]) == ids


def test_pictures_stand_in_every_example_and_are_not_trained_as_words(renderer: Renderer) -> None:
    data = _encoded(256, 256)
    messages = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": _data_url(data)}}]},
        {"role": "assistant", "content": "A square."},
        {"role": "user", "content": [{"type": "text", "text": "And this? "}, {"image": data}]},
        {"role": "assistant", "content": "Another."},
    ]
    pad = renderer.tokenizer.control_tokens[PAD]
    for mode in ("all_assistant_messages", "all_messages"):
        for ids, weights in renderer.build_supervised_examples(messages, mode):
            array = ids.to_array()
            assert not weights[array == pad].any()
            images = [chunk for chunk in ids.chunks if isinstance(chunk, ImageChunk)]
            assert 64 * len(images) == int((array == pad).sum())
            assert {image.data for image in images} == {data}
    ids, _ = renderer.build_supervised_example(messages)
    assert int((ids.to_array() == pad).sum()) == 128


def _data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ("nowhere.png", r"the picture cannot be read: .*nowhere.png"),
        ("a\0b", r"the picture cannot be read: "),
        ("https://example.org/cat.png", r"pictures are not fetched from the network: https://example.org/cat.png"),
        ("data:image/png;base64,!", r"the data: URL is not base64: "),
        ("data:image/png;base64", r"a data: URL without data"),
        (b"", r"not a picture that can be read: "),
        (b"GIF89a", r"not a picture that can be read: "),
        (_encoded(8, 8)[:20], r"not a picture that can be read: "),
        (_encoded(201, 1), r"a picture of 201 x 1 pixels; one side may be 200 times the other"),
        (7, r"a picture is given as bytes, a path, a data: URL or a Pillow image, not int"),
    ],
)
def test_what_is_no_picture_is_refused_by_place(renderer: Renderer, picture: Any, expected: str) -> None:
    said = [Message("user", "Hi"), Message("user", (TextPart("Look: "), ImagePart(picture)))]
    with pytest.raises(RenderError, match=rf"^message 1: content\[1\]: {expected}"):
        renderer.build_generation_prompt(said)
    [error] = renderer.build_many([([*said, Message("assistant", "Yes.")], None)])
    assert isinstance(error, RenderError)


@pytest.mark.parametrize(
    ("name", "role", "is_shown"),
    [
        ("qwen3_vl", "system", True),
        ("qwen3_vl", "assistant", False),
        ("qwen3_vl_instruct", "system", False),
        ("qwen3_vl_instruct", "assistant", False),
    ],
)
def test_not_everyone_shows_pictures(qwen3: FastTokenizer, name: str, role: str, is_shown: bool) -> None:
    renderer = get_renderer(name, qwen3)
    said = [{"role": role, "content": [{"type": "image"}]}, {"role": "user", "content": "Hi"}]
    if is_shown:
        assert PAD in renderer.tokenizer.decode(renderer.build_generation_prompt(said).to_ints())
        return
    with pytest.raises(RenderError, match=f"^message 0: content: a message of the {role} in {name} has no images"):
        renderer.build_generation_prompt(said)


def test_a_later_system_message_is_refused_by_instruct(qwen3: FastTokenizer) -> None:
    said = [Message("system", "a"), Message("system", "b"), Message("user", "c")]
    with pytest.raises(RenderError, match=r"^message 1: role: in qwen3_vl_instruct a system message can only be the"):
        get_renderer("qwen3_vl_instruct", qwen3).build_generation_prompt(said)
    assert get_renderer("qwen3_vl", qwen3).build_generation_prompt(said).length > 0


def test_without_pillow_only_pictures_are_refused(renderer: Renderer, without: Callable[[str], None]) -> None:
    without("PIL")
    assert renderer.build_generation_prompt([Message("user", (ImagePart(None),))]).length > 0
    with pytest.raises(RenderError, match=r"^message 0: content\[0\]: pictures need Pillow"):
        renderer.build_generation_prompt([Message("user", (ImagePart(b"x"),))])


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda name: monkeypatch.setitem(__import__("sys").modules, name, None)


def test_a_newline_stands_between_empty_parts_and_a_call_as_in_the_template(qwen3: FastTokenizer) -> None:
    call = {"function": {"name": "f", "arguments": "{}"}}
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [call]}]
    renderer = get_renderer("qwen3_vl_instruct", qwen3)
    written = []
    for content in (None, "", [], [{"type": "text", "text": ""}]):
        ids, _ = renderer.build_supervised_example([said[0], said[1] | {"content": content}], "all_tokens")
        written.append(qwen3.decode(ids.to_ints()).rpartition("assistant\n")[2])
    assert [text.startswith("\n") for text in written] == [False, False, False, True]
