"""The teachers of a configuration, opened: models loaded, servers asked, each with its view of the problems."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from crucible_train import files, terminal, wiring
from crucible_train.config.sections import PeftConfig
from crucible_train.distill.config import TeacherConfig
from crucible_train.distill.teacher import Reader, Teacher, Teachers, check_objective, prefaced
from crucible_train.errors import ConfigError
from crucible_train.judges import Asked
from crucible_train.ports import SamplingClient, Tokenizer, TrainingClient
from crucible_train.recipes.distill import DistillConfig
from crucible_train.renderers import FastTokenizer, Renderer, get_renderer, renderer_for
from crucible_train.rl.environments import problems
from crucible_train.rl.problem_set import ProblemSet
from crucible_train.stages.base import in_thread
from crucible_train.stages.chat_format import renderer_spec
from crucible_train.stages.prepare_model import base_name
from crucible_train.stages.publishing import ADAPTER_CONFIG
from crucible_train.stages.rl.problems import judge_of
from crucible_train.types import Hardware

_NO_ADAPTER = PeftConfig(lora_r=1)
"""A frozen model is loaded with an adapter that is never on: so it is kept in the precision of its products."""


@dataclass(frozen=True, slots=True)
class Classroom:
    """The student's view of the problems, and who teaches."""

    student: Reader
    teachers: Teachers


def input_name(field: str) -> str:
    """Under which name a teacher's model is among the inputs of a stage."""
    return field.replace(".", "_")


def problems_for(config: DistillConfig, renderer: Renderer, judge: Asked | None = None) -> ProblemSet:
    """The problems of a configuration, in a chat format; without their ``judge`` they can be shown, not played.

    Raises:
        ConfigError: the environment or an option is wrong, or a library is missing.
        DataError: a data set cannot be used.
    """
    return problems(config.env.name, config.env.options, renderer, config.seed, wiring.dataset_store(), judge)


def student_of(config: DistillConfig, model_dir: Path, tokenizer: Tokenizer) -> Reader:
    """How the student sees the problems, which can be shown, not played, where they need a judge."""
    renderer = _renderer_of(config, model_dir, tokenizer)
    return Reader(problems_for(config, renderer), renderer)


def _renderer_of(config: DistillConfig, model_dir: Path, tokenizer: Tokenizer) -> Renderer:
    spec = renderer_spec(config, model_dir, tokenizer)
    return get_renderer(spec.name, tokenizer, **spec.options)


def teacher_reader(
    config: DistillConfig,
    teacher: TeacherConfig,
    student: Reader,
    model_dir: Path | None,
    judge: Asked | None = None,
) -> tuple[Reader, bool, bool]:
    """How a teacher sees the problems, and whether it shares the student's ids and its chat format.

    Args:
        config: the whole configuration.
        teacher: which one.
        student: how the student sees them.
        model_dir: the teacher's model; None where it is the student's, or behind a server.
        judge: compares answers, where the environment needs one and they are played.

    Raises:
        ConfigError: its renderer or an option of it is unknown.
        ModelError: its tokenizer cannot be read.
    """
    mine = student.renderer
    its = _renderer(teacher, mine, model_dir)
    seen = prefaced(its, teacher.preface(config.env.name))
    shares_ids = its.tokenizer.sha256 == mine.tokenizer.sha256
    shares_format = type(its) is type(mine) and its.options == mine.options
    return Reader(problems_for(config, seen, judge), seen), shares_ids, shares_format


def _renderer(teacher: TeacherConfig, mine: Renderer, model_dir: Path | None) -> Renderer:
    """The teacher's chat format: its model's own, or the student's where it has no other tokenizer."""
    folder = model_dir if teacher.tokenizer is None else Path(teacher.tokenizer).expanduser()
    tokenizer = mine.tokenizer if folder is None else FastTokenizer.from_folder(folder)
    if teacher.renderer != "auto":
        return get_renderer(teacher.renderer, tokenizer, **teacher.renderer_options)
    if folder is None:
        return mine
    name = teacher.model or teacher.tokenizer or ""
    return renderer_for(name, folder, None, tokenizer, teacher.renderer_options)[1]


@asynccontextmanager
async def classroom(
    config: DistillConfig, client: TrainingClient, inputs: Mapping[str, Path], hardware: Hardware, state_dir: Path
) -> AsyncIterator[Classroom]:
    """Open the teachers of a run, and close them.

    Raises:
        ConfigError: one of them does not fit the student or what is to be learnt.
        ModelError: a model cannot be loaded.
    """
    renderer = _renderer_of(config, inputs["model"], client.tokenizer())
    async with AsyncExitStack() as stack:
        own = (inputs["model"], renderer)
        judge = await stack.enter_async_context(judge_of(config.env, own, config.engine, hardware))
        student = Reader(problems_for(config, renderer, judge), renderer)
        opening = _Opening(config, client, inputs, hardware, state_dir, student, stack, judge)
        found = {field: await opening.teacher(field, one) for field, one in config.teacher_configs.items()}
        by_tag = {field.removeprefix("teachers."): one for field, one in found.items() if field != "teacher"}
        yield Classroom(student, Teachers(found["teacher"], by_tag))


@dataclass(frozen=True, slots=True)
class _Opening:
    """What teachers are opened with."""

    config: DistillConfig
    client: TrainingClient
    inputs: Mapping[str, Path]
    hardware: Hardware
    state_dir: Path
    student: Reader
    stack: AsyncExitStack
    judge: Asked | None

    async def teacher(self, field: str, teacher: TeacherConfig) -> Teacher:
        """One of them."""
        folder = self.inputs.get(input_name(field))
        reader, shares_ids, shares_format = teacher_reader(self.config, teacher, self.student, folder, self.judge)
        client = await self._client(field, teacher, reader.renderer.tokenizer)
        made = Teacher(field, client, reader, shares_ids, shares_format)
        check_objective(made, self.student, self.config.lesson.objective)
        return made

    async def _client(self, field: str, teacher: TeacherConfig, tokenizer: Tokenizer) -> SamplingClient:
        match teacher.kind:
            case "student":
                return self.client.sampling_client()
            case "server":
                return wiring.sampling_client(teacher.server, tokenizer, lambda line: terminal.field(field, line))
            case "start" if self.config.peft.use_peft:
                return self.client.sampling_client(with_adapter=False)
        folder = self.inputs["model"] if teacher.kind == "start" else self.inputs[input_name(field)]
        adapter = _adapter_of(teacher)
        peft = _NO_ADAPTER if adapter is None else peft_of(adapter, field)
        name = self.config.model if teacher.kind == "start" else teacher.model or ""

        def load() -> TrainingClient:
            return wiring.training_client(
                folder,
                peft,
                self.config.engine,
                self.hardware,
                self.state_dir / input_name(field),
                name=base_name(name),
                seed=0,
                adapter=adapter,
            )

        loaded = await in_thread(load)
        self.stack.push_async_callback(loaded.close)
        return loaded.sampling_client(with_adapter=adapter is not None)


def _adapter_of(teacher: TeacherConfig) -> Path | None:
    return None if teacher.adapter is None else Path(teacher.adapter).expanduser()


def peft_of(adapter: Path, field: str) -> PeftConfig:
    """The shape of a stored adapter.

    Raises:
        ConfigError: there is none in the folder.
    """
    found = files.read_json(adapter / ADAPTER_CONFIG)
    if not isinstance(found, dict) or not (adapter / "adapter_model.safetensors").is_file():
        raise ConfigError(f"{field}.adapter: {adapter}: there is no adapter there")
    return PeftConfig(
        lora_r=found["r"],
        lora_alpha=found["lora_alpha"],
        lora_target_modules=found.get("target_modules") or "all-linear",
    )
