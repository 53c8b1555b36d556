"""The teachers of a configuration, opened: models loaded, servers asked, each with its view of the problems."""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
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
from crucible_train.stages.chat_format import renderer_of
from crucible_train.stages.prepare_model import base_name
from crucible_train.stages.publishing import ADAPTER_CONFIG, FROZEN
from crucible_train.stages.rl.problems import judge_of
from crucible_train.types import Hardware

_BEYOND_LORA = (
    "alpha_pattern",
    "bias",
    "layer_replication",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
)
"""Fields of an adapter's configuration that change what its weights mean."""
_PROBLEMS_LOOKED_AT = 1024


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
    renderer = renderer_of(config, model_dir, tokenizer)
    return Reader(problems_for(config, renderer), renderer)


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
    renderer = renderer_of(config, inputs["model"], client.tokenizer())
    async with AsyncExitStack() as stack:
        own = (inputs["model"], renderer)
        judge = await stack.enter_async_context(judge_of(config.env, own, config.engine, hardware))
        student = Reader(problems_for(config, renderer, judge), renderer)
        opening = _Opening(config, client, inputs, hardware, state_dir, student, stack, judge)
        found = {field: await opening.teacher(field, one) for field, one in config.teacher_configs.items()}
        by_tag = {field.removeprefix("teachers."): one for field, one in found.items() if field != "teacher"}
        check_tags(by_tag, student.problems)
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
                return wiring.sampling_client(teacher.server, tokenizer, partial(terminal.field, field))
            case "tinker":
                served = wiring.tinker_client(teacher.tinker, tokenizer, partial(terminal.field, field))
                return await self.stack.enter_async_context(served)
            case "start" if self.config.peft.use_peft:
                return self.client.sampling_client(with_adapter=False)
        folder = self.inputs["model"] if teacher.kind == "start" else self.inputs[input_name(field)]
        adapter = _adapter_of(teacher)
        peft = FROZEN if adapter is None else peft_of(adapter, field)
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


def check_tags(by_tag: Collection[str], problem_set: ProblemSet) -> None:
    """See that every teacher by tag has something to teach, as far as the first problems tell.

    Raises:
        ConfigError: none of them has the tag of one.
    """
    num = min(_PROBLEMS_LOOKED_AT, problem_set.num_train or _PROBLEMS_LOOKED_AT)
    builders = [*problem_set.held_out, *(problem_set.train(index) for index in range(num))] if by_tag else []
    known = {tag for builder in builders for tag in builder.tags}
    if unknown := [tag for tag in by_tag if tag not in known]:
        theirs = f"theirs are {', '.join(sorted(known))}" if known else "they have none"
        raise ConfigError(f"teachers.{unknown[0]}: none of the first {len(builders)} problems has this tag; {theirs}")


def _adapter_of(teacher: TeacherConfig) -> Path | None:
    return None if teacher.adapter is None else Path(teacher.adapter).expanduser()


def peft_of(adapter: Path, field: str) -> PeftConfig:
    """The shape of a stored adapter.

    Raises:
        ConfigError: there is none in the folder, or one of another kind than plain LoRA.
    """
    found = files.read_json(adapter / ADAPTER_CONFIG)
    if not isinstance(found, dict) or not (adapter / "adapter_model.safetensors").is_file():
        raise ConfigError(f"{field}.adapter: {adapter}: there is no adapter there")
    if more := [name for name in _BEYOND_LORA if found.get(name) not in (None, False, "none", {}, [])]:
        raise ConfigError(f"{field}.adapter: {adapter}: {', '.join(more)} is set there, and plain LoRA alone is read")
    return PeftConfig(
        lora_r=found["r"],
        lora_alpha=found["lora_alpha"],
        lora_target_modules=found.get("target_modules") or "all-linear",
    )
