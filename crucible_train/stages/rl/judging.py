"""The judge of a run: a preference model in this process or behind a server, loaded when it is first asked."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from crucible_train import terminal, wiring
from crucible_train.config.sections import EngineConfig, PeftConfig
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
from crucible_train.rl.environments.preference import JudgeSource
from crucible_train.stages.base import in_thread
from crucible_train.stages.prepare_model import external, locate
from crucible_train.types import Hardware, Message

_TOKENIZER_FILES = ("*.json", "*.jinja", "*.xz")


def judge_identity(options: JudgeSource) -> str:
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


class OpenedJudge:
    """A ``Judge`` that is loaded when it is first asked, and tells at its end how far it heeded the order.

    Args:
        options: which model judges.
        own: the folder and the chat format of the model before training, which judges where no other is named.
        engine: how it is computed here.
        hardware: where.
    """

    def __init__(
        self, options: JudgeSource, own: tuple[Path, Renderer], engine: EngineConfig, hardware: Hardware
    ) -> None:
        """Load nothing yet."""
        self._options, self._own, self._engine, self._hardware = options, own, engine, hardware
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
        if self._seen.num:
            terminal.field(
                "judge",
                f"{self._seen.num} pairs in both orders: position bias {self._seen.bias:.3f}, the verdict flips with "
                f"the order in {self._seen.flip_share:.0%}",
            )

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
        folder, renderer = self._own if self._options.judge is None else _named(self._options)
        server = self._options.judge_server
        if server is not None:
            client = wiring.sampling_client(server, renderer.tokenizer, _tell)
            return LabelJudge(client, ComparisonRenderer(renderer), alone=False)
        peft, unused = PeftConfig(use_peft=False), folder / "unused"
        if (folder / SCALAR_HEAD).is_file():

            def load_with_head() -> RewardJudge:
                self._client = model = wiring.reward_model(
                    folder, peft, self._engine, self._hardware, unused, name="judge", seed=0
                )
                return RewardJudge(model, renderer)

            return await in_thread(load_with_head)
        comparing = ComparisonRenderer(renderer)

        def load() -> TrainingClient:
            return wiring.training_client(folder, peft, self._engine, self._hardware, unused, name="judge", seed=0)

        self._client = await in_thread(load)
        return LabelJudge(self._client.sampling_client(), comparing)


def _named(options: JudgeSource) -> tuple[Path, Renderer]:
    """The folder and the chat format of a judge that is named."""
    folder = _folder_of(options)
    wanted = None if options.judge_renderer == "auto" else options.judge_renderer
    _, renderer = renderer_for(str(options.judge), folder, wanted, FastTokenizer.from_folder(folder), {})
    return folder, renderer


def _folder_of(options: JudgeSource) -> Path:
    """Where the judge's files lie; of a server's model only its tokenizer and configuration."""
    name = str(options.judge)
    path = Path(name).expanduser()
    if options.judge_url is not None:
        return path if path.is_dir() else wiring.download_model(name, _TOKENIZER_FILES)
    found = locate(name)
    if not found.is_dir():
        raise ConfigError(f"env.options.judge: {name}: a folder or hub id of a transformers model is needed")
    return found


def _tell(line: str) -> None:
    terminal.field("judge", line)
