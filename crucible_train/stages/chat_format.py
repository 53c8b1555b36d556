"""The chat format of a run: which renderer a configuration means for its model, settled before any row is rendered.

A model that was trained here brings its format along. A format that writes today's date is given the date of the day on
which these rows were first rendered with it. It then stands in the configuration and so in every later stage's key, and
the same command finds the same run on another day, or goes on with it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from crucible_train import files, terminal, wiring
from crucible_train.config.run_config import RunConfig
from crucible_train.data.render_rows import RendererSpec
from crucible_train.errors import ConfigError
from crucible_train.ports import Tokenizer
from crucible_train.renderers import FastTokenizer, Renderer, RendererRecord, renderer_for
from crucible_train.stages.base import Stage, in_thread, open_artifact, peek, resolve
from crucible_train.types import ArtifactRef

ConfigT = TypeVar("ConfigT", bound=RunConfig)
_DATE_FILE = "date.json"


def renderer_record(config: RunConfig, model_dir: Path, tokenizer: Tokenizer | None = None) -> RendererRecord:
    """Which renderer a configuration means for a model; ``tokenizer`` is the model's, where it is loaded already.

    Raises:
        ConfigError: there is none, an option is unknown, or the model was trained with another.
        ModelError: the model's tokenizer is missing, or not the one it was trained with.
    """
    return RendererRecord.of(*_renderer(config, model_dir, tokenizer))


def renderer_spec(config: RunConfig, model_dir: Path, tokenizer: Tokenizer | None = None) -> RendererSpec:
    """The same, for whoever is to make the renderer again.

    Raises:
        ConfigError: as ``renderer_record``.
        ModelError: likewise.
    """
    name, renderer = _renderer(config, model_dir, tokenizer)
    return RendererSpec(name, dict(renderer.options), model_dir)


def renderer_of(config: RunConfig, model_dir: Path, tokenizer: Tokenizer) -> Renderer:
    """The chat format of a configuration for a model, with this tokenizer.

    Raises:
        ConfigError: as ``renderer_record``.
        ModelError: likewise.
    """
    _, renderer = _renderer(config, model_dir, tokenizer)
    return renderer


async def settled(config: ConfigT, refs: Mapping[str, ArtifactRef]) -> ConfigT:
    """The configuration with the date that its chat format writes, where it writes today's and none is given.

    Args:
        config: what is asked for.
        refs: the artifact ``model``, and ``conversations`` where there are any.

    Raises:
        ConfigError: the renderer is not one, or not the one of the model or of the checkpoint to go on from.
    """
    model_dir = open_artifact(wiring.blob_store(config.cache_dir), refs["model"])
    name, renderer = await in_thread(_renderer, config, model_dir)
    if _open_date(config, model_dir, renderer) is not None:
        await resolve(NoteDate(config), _needed(refs), config.cache_dir)
        config = with_noted_date(config, refs)
        name, renderer = _renderer(config, model_dir, renderer.tokenizer)
        terminal.field("date", f"{renderer.options[renderer.date_option or '']} is written by {name}")
    start = config.checkpoint.resume_from_checkpoint
    if start not in ("auto", "never"):
        check_start(start, RendererRecord.of(name, renderer))
    return config


def with_noted_date(config: ConfigT, refs: Mapping[str, ArtifactRef]) -> ConfigT:
    """The configuration with the date that was noted when these rows were first rendered; as it is where none was."""
    noted = peek(NoteDate(config), _needed(refs), config.cache_dir)
    if noted is None:
        return config
    date = files.read_json(wiring.blob_store(config.cache_dir).fetch(noted) / _DATE_FILE)
    options = {**config.data.renderer_options, **date}
    return config.model_copy(update={"data": config.data.model_copy(update={"renderer_options": options})})


def check_start(checkpoint: str, record: RendererRecord) -> None:
    """See that the checkpoint of another run that is to be gone on from was trained with the renderer of this run.

    Raises:
        ConfigError: it was trained with another.
    """
    other = RendererRecord.from_folder(Path(checkpoint).expanduser())
    if other is None or other == record:
        return
    compared = (
        ("data.renderer", record.name, other.name),
        ("data.renderer_options", record.options, other.options),
        ("a tokenizer of digest", record.tokenizer_sha256[:12], other.tokenizer_sha256[:12]),
    )
    differing = "; ".join(f"{name} {ours!r} for {theirs!r}" for name, ours, theirs in compared if ours != theirs)
    raise ConfigError(
        f"checkpoint.resume_from_checkpoint: {checkpoint}: it was trained in another chat format, and this run has "
        f"{differing}; give it the same, or begin a new run from that run's published model"
    )


class NoteDate(Stage[RunConfig]):
    """Notes the date that the chat format writes when rows are first rendered with it."""

    name = "note_date"
    reads = ("model", "data.renderer", "data.renderer_options")
    code = ("renderers",)

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Write the option that holds the date, if the format writes one that is not given."""
        _, renderer = _renderer(self.config, inputs["model"])
        option = _open_date(self.config, inputs["model"], renderer)
        files.write_json(folder / _DATE_FILE, {option: renderer.options[option]} if option is not None else {})


def _renderer(config: RunConfig, model_dir: Path, tokenizer: Tokenizer | None = None) -> tuple[str, Renderer]:
    wanted = None if config.data.renderer == "auto" else config.data.renderer
    tokenizer = tokenizer or FastTokenizer.from_folder(model_dir)
    return renderer_for(config.model, model_dir, wanted, tokenizer, config.data.renderer_options)


def _open_date(config: RunConfig, model_dir: Path, renderer: Renderer) -> str | None:
    """The option for the date where the renderer writes today's, since neither the user nor the model says which."""
    option = renderer.date_option
    is_given = config.data.renderer_options.get(option or "") is not None
    return None if is_given or RendererRecord.from_folder(model_dir) is not None else option


def _needed(refs: Mapping[str, ArtifactRef]) -> Mapping[str, ArtifactRef]:
    return {name: refs[name] for name in ("model", "conversations") if name in refs}
