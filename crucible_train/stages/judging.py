"""The judge of a run: a preference model in this process or behind a server, loaded when it is first asked."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from crucible_train import terminal, wiring
from crucible_train.config.judge import JudgeConfig
from crucible_train.config.sections import EngineConfig
from crucible_train.errors import ConfigError
from crucible_train.judges import (
    SCALAR_HEAD,
    ComparisonRenderer,
    Judge,
    Judgement,
    LabelJudge,
    PositionBias,
    RewardJudge,
    position_bias,
)
from crucible_train.ports import TrainingClient
from crucible_train.renderers import FastTokenizer, Renderer, renderer_for
from crucible_train.stages.base import in_thread
from crucible_train.stages.prepare_model import at_hand, external, locate
from crucible_train.stages.publishing import FROZEN
from crucible_train.types import ArtifactRef, Hardware, Message

_TOKENIZER_FILES = ("*.json", "*.jinja", "*.xz")


def judge_identity(options: JudgeConfig) -> str:
    """What decides what the judge says: its files' digest; of a server all that can be known, its address and name.

    The model before training is told apart by the stage's input.

    Raises:
        ModelError: there is no such model.
        ConfigError: it is not a folder of weights.
    """
    if options.judge is None:
        return "the model before training"
    digest = external(_folder_of(options)).sha256
    server = options.judge_server
    return digest if server is None else f"{digest} {server.base_url} {server.model}"


def served_judge(options: JudgeConfig) -> ArtifactRef:
    """What there is here of a judge behind a server: its tokenizer and configuration.

    Raises:
        ModelError: there are none.
    """
    return external(_folder_of(options))


def judge_in_words(options: JudgeConfig) -> str:
    """Who judges, for people."""
    if options.judge is None:
        return "the model before training"
    if options.judge_url is None:
        return options.judge
    return f"{options.judge_served_name or options.judge} at {options.judge_url}"


def judge_at_hand(options: JudgeConfig) -> Path | None:
    """The file or folder of a judge that is named, if it is on this machine; nothing is fetched.

    Raises:
        ModelError: there is no such file or folder.
    """
    name = str(options.judge)
    if options.judge_url is None:
        return at_hand(name)
    path = Path(name).expanduser()
    return path if path.is_dir() else wiring.downloaded_model(name)


def check_judge(options: JudgeConfig, folder: Path) -> None:
    """See that a named judge whose files lie in ``folder`` can be asked: it has a chat format, and words for a verdict.

    Raises:
        ConfigError: it cannot.
        ModelError: it has no tokenizer.
    """
    renderer = _renderer(options, folder)
    if not (folder / SCALAR_HEAD).is_file():
        ComparisonRenderer(renderer)


class OpenedJudge:
    """A ``Judge`` that is loaded when it is first asked, and knows how far it heeded the order.

    Args:
        options: which model judges.
        own: the folder and the chat format of the model before training, which judges where no other is named.
        engine: how it is computed here.
        hardware: where.
        folder: where the files of a judge that is named lie; None finds them by its name.
    """

    def __init__(
        self,
        options: JudgeConfig,
        own: tuple[Path, Renderer],
        engine: EngineConfig,
        hardware: Hardware,
        folder: Path | None = None,
    ) -> None:
        """Load nothing yet."""
        self._options, self._own, self._engine, self._hardware = options, own, engine, hardware
        self._folder = folder
        self._opening = asyncio.Lock()
        self._judge: Judge | None = None
        self._client: TrainingClient | None = None
        self._seen = PositionBias(0, 0.0, 0.0)

    async def __aenter__(self) -> Self:
        """Nothing is loaded before it is asked."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the model."""
        if self._client is not None:
            await self._client.close()

    @property
    def seen(self) -> PositionBias:
        """How far it has heeded the order so far."""
        return self._seen

    async def compare(self, prompt: Sequence[Message], a: Message, b: Message) -> float:
        """The score of ``a`` beside ``b``."""
        (found,) = await self.judge(prompt, [(a, b)])
        return found.score

    async def judge(self, prompt: Sequence[Message], pairs: Sequence[tuple[Message, Message]]) -> Sequence[Judgement]:
        """What it says of each pair."""
        async with self._opening:
            if self._judge is None:
                self._judge = await self._open()
        found = await self._judge.judge(prompt, pairs)
        self._seen = self._seen.joined(position_bias(found))
        return found

    async def _open(self) -> Judge:
        folder, renderer = self._own if self._options.judge is None else self._named()
        server = self._options.judge_server
        if server is not None:
            client = wiring.sampling_client(server, renderer.tokenizer, _tell)
            return LabelJudge(client, ComparisonRenderer(renderer), alone=False)
        unused = folder / "unused"
        if (folder / SCALAR_HEAD).is_file():

            def load_with_head() -> RewardJudge:
                self._client = model = wiring.reward_model(
                    folder, FROZEN, self._engine, self._hardware, unused, name="judge", seed=0
                )
                return RewardJudge(model, renderer)

            return await in_thread(load_with_head)
        comparing = ComparisonRenderer(renderer)

        def load() -> TrainingClient:
            return wiring.training_client(folder, FROZEN, self._engine, self._hardware, unused, name="judge", seed=0)

        self._client = await in_thread(load)
        return LabelJudge(self._client.sampling_client(with_adapter=False), comparing)

    def _named(self) -> tuple[Path, Renderer]:
        """The folder and the chat format of a judge that is named."""
        folder = self._folder or _folder_of(self._options)
        return folder, _renderer(self._options, folder)


def _renderer(options: JudgeConfig, folder: Path) -> Renderer:
    """The chat format of a judge that is named."""
    wanted = None if options.judge_renderer == "auto" else options.judge_renderer
    return renderer_for(str(options.judge), folder, wanted, FastTokenizer.from_folder(folder), {})[1]


def _folder_of(options: JudgeConfig) -> Path:
    """Where the judge's files lie; of a server's model only its tokenizer and configuration."""
    name = str(options.judge)
    path = Path(name).expanduser()
    if options.judge_url is not None:
        return path if path.is_dir() else wiring.download_model(name, _TOKENIZER_FILES)
    found = locate(name)
    if not found.is_dir():
        raise ConfigError(f"env.options.judge: {name}: a folder or hub id of a transformers model is needed")
    return found


def tell_bias(seen: PositionBias) -> None:
    """Say how far a judge heeded the order; nothing where it was not asked."""
    if seen.num:
        terminal.field(
            "judge",
            f"{seen.num} pairs in both orders: position bias {seen.bias:.3f}, the verdict flips with the order in "
            f"{seen.flip_share:.0%}",
        )


def _tell(line: str) -> None:
    terminal.field("judge", line)
