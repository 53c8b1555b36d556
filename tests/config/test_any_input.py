"""Whatever is typed, the answer is a configuration or a list of lines."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train.config.aliases import OTHER_NAMES
from crucible_train.config.command import parse_command
from crucible_train.config.fields import tree_of
from crucible_train.errors import ConfigError
from crucible_train.recipes.sft import SFTConfig

TREE = tree_of(SFTConfig)
KEYS = st.sampled_from([*TREE.leaves, *TREE.named, *TREE.branches, *OTHER_NAMES, "config", "dry_run", "", "x", "."])
TEXTS = (
    st.text(max_size=8)
    | st.sampled_from(
        [
            "1",
            "0.5",
            "-1",
            "true",
            "null",
            "[",
            "[a,[b]]",
            "{a:1}",
            "{a:{b:1}}",
            '"',
            '"\\UFFFFFFFF"',
            "'a'",
            "&a",
            "*a",
            "!!x",
            "[*a]",
            "[!!x]",
        ]
    )
    | st.sampled_from(["{a: 1}", "{a: {b: 1}}"])
)
WORDS = st.one_of(
    TEXTS,
    st.builds("{}={}".format, KEYS, TEXTS),
    st.builds("--{}".format, KEYS),
    st.builds("--{}={}".format, KEYS, TEXTS),
    st.builds("{}.{}={}".format, KEYS, KEYS, TEXTS),
)
LINES = st.builds("{}{}: {}".format, st.sampled_from(["", "  ", "    "]), KEYS, TEXTS | KEYS)


def _answer(argv: list[str]) -> None:
    try:
        command = parse_command(SFTConfig, argv, "python -m flows.sft")
    except ConfigError as error:
        problems = error.problems
    else:
        assert isinstance(command.config, SFTConfig)
        return
    assert problems
    assert all(problem.isprintable() for problem in problems)


@settings(max_examples=80, deadline=None)
@given(st.lists(WORDS, max_size=5))
def test_any_command_line(argv: list[str]) -> None:
    _answer(argv)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(LINES | TEXTS, max_size=6).map("\n".join) | st.binary(max_size=30).map(lambda data: data.decode("latin1"))
)
def test_any_file(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.yaml"
        file.write_bytes(text.encode(errors="surrogatepass"))
        _answer(["--config", str(file)])
