"""From conversations to tokens and weights: split by seed, the same bytes however many workers, bad rows set aside."""

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from crucible_train.config.sections import DataConfig
from crucible_train.data.preparation import CONVERSATIONS
from crucible_train.data.render_rows import RendererSpec, render_rows
from crucible_train.data.render_workers import rendered_by_workers
from crucible_train.data.rendering import TRAIN, VALIDATION, render
from crucible_train.data.tables import Examples
from crucible_train.errors import DataError, RunError

LONG = "x" * 1000
AROUND = (
    "{S}system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face{E}\n"
    "{S}user\n%s{E}\n{S}assistant\n%s{E}\n"
)


def num_tokens(question: str, answer: str) -> int:
    """How many tokens a conversation has where a byte is a token and each control token is one."""
    return len((AROUND % (question, answer)).replace("{S}", "1").replace("{E}", "1"))


def lines(*answers: str) -> bytes:
    rows = ({"prompt": f"question {number}", "completion": answer} for number, answer in enumerate(answers))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def rendered(tmp_path, prepared, smollm2):
    """Prepare and render rows; what was made, its training and its held-out examples."""

    def run(data, seed=0, spec=smollm2, **options):
        folder = prepared(data, **options).folder
        summary = render(folder, spec, DataConfig(**options), seed, tmp_path / "rendered")
        return summary, *(Examples(tmp_path / "rendered" / name) for name in (TRAIN, VALIDATION))

    return run


def test_an_example_is_the_chat_format_with_the_answer_and_its_end_trained(rendered, smollm2):
    summary, train, held_out = rendered(lines("The answer."), eval_split=0.0)
    tokenizer = smollm2.make().tokenizer
    (example,) = train
    assert tokenizer.decode(example.tokens_T.tolist()) == (AROUND % ("question 0", "The answer.")).replace(
        "{S}", "<|im_start|>"
    ).replace("{E}", "<|im_end|>")
    assert tokenizer.decode(example.tokens_T[example.weights_T > 0].tolist()) == "The answer.<|im_end|>"
    assert example.num_bytes == len("The answer.")
    assert len(held_out) == 0
    assert summary["train"] == {
        "num_examples": 1,
        "num_tokens": num_tokens("question 0", "The answer."),
        "num_trained_tokens": len("The answer.") + 1,
        "max_tokens": num_tokens("question 0", "The answer."),
    }


def test_the_split_is_disjoint_complete_and_decided_by_the_seed(rendered):
    def parts(seed):
        _, train, held_out = rendered(lines(*"abcdefghijklmnopqrst"), seed=seed, eval_split=0.2)
        return [e.row for e in train], [e.row for e in held_out]

    train, held_out = parts(0)
    assert sorted(train + held_out) == list(range(20))
    assert len(held_out) == 4
    assert parts(0) == (train, held_out)
    assert parts(1) != (train, held_out)


def test_workers_make_the_bytes_that_one_process_makes(tmp_path, prepared, smollm2):
    answers = [LONG if row % 97 == 5 else f"answer {row}" for row in range(1100)]
    options = {"on_bad_row": "quarantine", "max_length": 200}
    folder = prepared(lines(*answers), **options).folder
    for num in (1, 2):
        render(folder, smollm2, DataConfig(num_workers=num, **options), 0, tmp_path / str(num))
    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert names == ["quarantine.jsonl", "summary.json", "train.arrow", "validation.arrow"]
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert len((tmp_path / "1" / "quarantine.jsonl").read_text().splitlines()) == 12


def test_rows_that_cannot_be_trained_are_set_aside_with_their_reasons(rendered, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "only asked"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": LONG}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "thinking": "hm"}]},
    ]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    summary, train, _ = rendered(data, eval_split=0.0, max_length=200, on_bad_row="quarantine")
    assert [e.row for e in train] == [0]
    assert summary["bad_rows"] == {"not_renderable": 1, "nothing_trained": 1, "too_long": 1}
    aside = [json.loads(line) for line in (tmp_path / "rendered" / "quarantine.jsonl").read_text().splitlines()]
    assert [(row["where"].rpartition("/")[2], row["reason"], row["problem"]) for row in aside] == [
        (
            "rows.jsonl:2",
            "nothing_trained",
            "no token is trained: train_on=all_assistant_messages selects no message of [user]",
        ),
        ("rows.jsonl:3", "too_long", f"{num_tokens('q', LONG)} tokens are more than data.max_length=200"),
        ("rows.jsonl:4", "not_renderable", "message 1: reasoning_content: smollm2 has no thinking"),
    ]


def test_a_bad_row_stops_the_run_and_is_counted_among_all_rows(rendered):
    with pytest.raises(DataError) as caught:
        rendered(lines("a", LONG, *"abcdefgh"), eval_split=0.3, max_length=200)
    first, last = str(caught.value).splitlines()
    assert first.endswith(f"rows.jsonl:2: {num_tokens('question 1', LONG)} tokens are more than data.max_length=200")
    assert last.startswith("1 of 10 rows is bad; mend it")


def test_a_set_of_which_no_row_is_left_to_train_on_is_an_error_with_the_reasons_counted(rendered):
    with pytest.raises(DataError, match=r"dataset: none of its 3 rows can be used \(too_long 3\); the first: .*:1: "):
        rendered(lines(LONG, LONG, LONG), eval_split=0.0, max_length=200, on_bad_row="quarantine")


def test_a_held_out_set_of_which_no_row_is_left_is_named_by_its_own_field(rendered, tmp_path):
    (tmp_path / "held.jsonl").write_bytes(lines(LONG))
    with pytest.raises(DataError, match=r"data\.eval_split: none of its 1 rows can be used \(too_long 1\)"):
        rendered(lines("a"), eval_split=str(tmp_path / "held.jsonl"), max_length=200, on_bad_row="quarantine")


def test_a_named_held_out_set_leaves_every_row_of_the_other_to_training(rendered, tmp_path):
    (tmp_path / "held.jsonl").write_bytes(lines("x", "y"))
    _, train, held_out = rendered(lines("a", "b", "c"), eval_split=str(tmp_path / "held.jsonl"))
    assert [e.row for e in train] == [0, 1, 2]
    assert [e.row for e in held_out] == [0, 1]


def test_a_row_whose_only_trained_token_is_its_first_has_nothing_to_train(rendered, smollm2):
    spec = RendererSpec("chat_template", {"template": "{{ messages[1].content }}"}, smollm2.tokenizer_dir)
    with pytest.raises(DataError, match="no token is trained"):
        rendered(lines("a"), spec=spec, eval_split=0.0, train_on="all_tokens")


def test_a_conversation_as_long_as_the_limit_is_kept(rendered):
    size = num_tokens("question 0", "a")
    assert len(rendered(lines("a"), eval_split=0.0, max_length=size)[1]) == 1
    with pytest.raises(DataError, match=f"{size} tokens are more than data.max_length={size - 1}"):
        rendered(lines("a"), eval_split=0.0, max_length=size - 1)


def test_turns_that_history_rewrites_are_examples_of_their_own_yet_one_row(rendered, smollm2):
    template = (
        "{% for m in messages %}<{{ m.role }}>"
        "{{ m.content if loop.last or m.role == 'user' else m.content[:1] }};{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    turns = [{"role": role, "content": f"{role} says"} for role in ("user", "assistant", "user", "assistant")]
    spec = RendererSpec("chat_template", {"template": template}, smollm2.tokenizer_dir)
    _, train, _ = rendered(json.dumps({"messages": turns}).encode(), spec=spec, eval_split=0.0)
    assert [e.row for e in train] == [0, 0]
    tokenizer = spec.make().tokenizer
    assert [tokenizer.decode(e.tokens_T.tolist()) for e in train] == [
        "<user>user says;<assistant>assistant says;",
        "<user>user says;<assistant>a;<user>user says;<assistant>assistant says;",
    ]
    assert all("assistant says" in tokenizer.decode(e.tokens_T[e.weights_T > 0].tolist()) for e in train)


def test_a_row_longer_than_the_model_has_positions_is_set_aside(rendered, tmp_path, smollm2):
    shutil.copytree(smollm2.tokenizer_dir, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"max_position_embeddings": 300}')
    spec = RendererSpec("smollm2", {}, tmp_path / "model")
    summary, train, _ = rendered(lines("a", LONG), spec=spec, eval_split=0.0, on_bad_row="quarantine")
    assert [e.row for e in train] == [0]
    assert summary["bad_rows"] == {"too_long": 1}
    (row,) = (tmp_path / "rendered" / "quarantine.jsonl").read_text().splitlines()
    problem = f"{num_tokens('question 1', LONG)} tokens are more than the 300 positions of the model"
    assert json.loads(row)["problem"] == problem


def test_a_worker_that_ends_early_is_an_error(prepared, smollm2):
    conversations = prepared(lines(*"abcd")).folder / CONVERSATIONS
    jobs = [(conversations, np.array([0, 1])), (conversations, np.array([2, 3]))]
    with rendered_by_workers(jobs, smollm2, DataConfig(), 1) as parts:
        assert next(parts).examples.num_rows == 2
    missing = RendererSpec("smollm2", {}, smollm2.tokenizer_dir / "nowhere")
    with (
        rendered_by_workers(jobs, missing, DataConfig(), 1) as parts,
        pytest.raises(RunError, match="a process that renders rows ended early, with status 1"),
    ):
        next(parts)


def test_rows_rendered_together_are_the_rows_rendered_one_by_one(prepared, smollm2):
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ä 🙂"}]},
        {"messages": [{"role": "user", "content": "only asked"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": LONG}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "thinking": "hm"}]},
        {"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "<|im_end|>"}]},
        {"messages": [{"role": "user", "content": "\u0000"}, {"role": "assistant", "content": ""}]},
    ]
    dialogues = prepared("".join(json.dumps(row) + "\n" for row in rows).encode()).dialogues
    renderer, config, order = smollm2.make(), DataConfig(max_length=500), [5, 0, 4, 3, 2, 1, 0]
    together = render_rows(renderer, dialogues, np.array(order), config, 1e9)
    apart = [render_rows(renderer, dialogues, np.array([row]), config, 1e9) for row in order]
    assert together.examples.to_pylist() == [row for part in apart for row in part.examples.to_pylist()]
    assert together.bad_rows == [row for part in apart for row in part.bad_rows]
    assert [row["row"] for row in together.examples.to_pylist()] == [5, 0, 4, 0]
    assert [row["num_bytes"] for row in together.examples.to_pylist()] == [0, 7, 10, 7]
    assert [str(row.reason) for row in together.bad_rows] == ["not_renderable", "too_long", "nothing_trained"]
    nothing = render_rows(renderer, dialogues, np.array([], np.int64), config, 1e9)
    assert (nothing.examples.num_rows, nothing.bad_rows) == (0, [])


def test_the_date_that_is_written_is_recorded_and_the_same_for_every_worker(tmp_path, prepared, smollm2):
    template = "{{ strftime_now('%Y-%m-%d %H:%M:%S') }}{% for m in messages %} {{ m.content }}{% endfor %}"
    spec = RendererSpec("chat_template", {"template": template}, smollm2.tokenizer_dir)
    folder = prepared(lines(*map(str, range(1100)))).folder
    summary = render(folder, spec, DataConfig(num_workers=2, eval_split=0.0), 0, tmp_path / "rendered")
    date = summary["renderer_options"]["now"]
    assert abs(datetime.now() - datetime.fromisoformat(date)) < timedelta(minutes=10)
    texts = {smollm2.make().tokenizer.decode(e.tokens_T.tolist())[:19] for e in Examples(tmp_path / "rendered" / TRAIN)}
    assert texts == {date.replace("T", " ")}


def test_a_row_with_a_picture_is_set_aside_since_only_its_place_would_be_trained(tmp_path, prepared):
    tokenizer = Path(__file__).parents[1] / "golden" / "tokenizers" / "qwen3"
    shutil.copytree(tokenizer, tmp_path / "model")
    seen = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    rows = [
        {"messages": [seen, {"role": "assistant", "content": "A cat."}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    ]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    config = DataConfig(on_bad_row="quarantine", eval_split=0.0)
    spec = RendererSpec("qwen3_vl_instruct", {}, tmp_path / "model")
    summary = render(prepared(data, on_bad_row="quarantine").folder, spec, config, 0, tmp_path / "rendered")
    assert summary["bad_rows"] == {"not_renderable": 1}
    (row,) = (tmp_path / "rendered" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(row)["problem"] == "message 0: content: a picture, and models are trained on text here"
