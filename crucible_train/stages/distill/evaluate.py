"""Measuring a student on held-out problems: its rewards, and how far it is from its teacher."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crucible_train import files
from crucible_train.distill.lessons import log_ratios, teacher_logprobs
from crucible_train.distill.pairs import Pair, first_prompt, pairs_of
from crucible_train.ports import SamplingClient
from crucible_train.recipes.distill import DistillConfig
from crucible_train.recipes.rl import RLConfig
from crucible_train.rl.config import RLEvalConfig
from crucible_train.rl.held_out import held_out_metrics, play_held_out
from crucible_train.rl.rollout_config import RolloutConfig
from crucible_train.seeds import fold
from crucible_train.stages.base import Stage
from crucible_train.stages.distill.sources import sources
from crucible_train.stages.distill.teachers import Classroom, classroom
from crucible_train.stages.layout import RESULTS, SUMMARY
from crucible_train.stages.publishing import open_client
from crucible_train.stages.rl import evaluate
from crucible_train.stages.rl.evaluate import tell_failure
from crucible_train.stages.rl.problems import PROBLEM_CODE, PROBLEM_FIELDS, PROBLEM_LIBRARIES, described
from crucible_train.stages.train import hardware_identity
from crucible_train.types import ArtifactRef, Hardware

DIVERGENCE = "teacher_kl"


class EvaluateDistill(Stage[DistillConfig]):
    """Plays every held-out problem once, and has the teacher score sampled answers to them."""

    name = "evaluate_distill"
    reads = (*PROBLEM_FIELDS, "model", "teacher", "teachers", "peft", "rollout", "eval.temperature", "eval.measure_kl")
    uses = ("engine", "lesson.objective", "lesson.student_share")
    code = (
        *PROBLEM_CODE,
        "distill",
        "stages.distill.teachers",
        "stages.publishing",
        "stages.rl.evaluate",
        "stages.rl.problems",
        "adapters.openai_compatible",
        "adapters.torch_local",
    )
    libraries = ("torch", "transformers", "peft", *PROBLEM_LIBRARIES)

    def __init__(self, config: DistillConfig, hardware: Hardware) -> None:
        """Measure on this hardware."""
        super().__init__(config)
        self._hardware = hardware

    def identity(self, inputs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
        """Device and precision decide the bits of the output, and so does what is read from elsewhere."""
        more = {"hardware": hardware_identity(self._hardware), "sources": sources(self.config)}
        return super().identity(inputs) | more

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Measure the base model, or, where ``trained`` is among the inputs, the trained one."""
        config = self.config
        client = await open_client(config, inputs["model"], self._hardware, folder / "unused", inputs.get("trained"))
        try:
            async with classroom(config, client, inputs, self._hardware, folder / "unused") as room:
                sampler = client.sampling_client()
                problems = room.student.problems
                about = described(RLConfig(env=config.env, seed=config.seed), problems)
                played = await play_held_out(sampler, problems.held_out, measured_as(config), config.seed, tell_failure)
                rows = [one.to_json() for one in played]
                if config.eval.measure_kl:
                    divergences = await held_out_divergences(config, room, sampler)
                    rows = [row | {DIVERGENCE: found} for row, found in zip(rows, divergences, strict=True)]
        finally:
            await client.close()
        files.write_text(folder / RESULTS, "".join(json.dumps(row) + "\n" for row in rows))
        summary = {"metrics": distill_metrics(rows), "num_problems": len(rows), "problems": about}
        files.write_json(folder / SUMMARY, summary)


def measured_as(config: DistillConfig, temperature: float | None = None) -> RolloutConfig:
    """How held-out problems are played: at the temperature of the evaluation or this one, from all tokens."""
    measured = RLEvalConfig(temperature=config.eval.temperature if temperature is None else temperature)
    return evaluate.measured_as(RLConfig(rollout=config.rollout, eval=measured))


async def held_out_divergences(
    config: DistillConfig, room: Classroom, sampler: SamplingClient
) -> Sequence[float | None]:
    """Log p_student - log p_teacher of an answer that the student samples to each held-out problem, a token.

    Its mean estimates the divergence. None where the episode failed or the teacher has no opinion.
    """
    held_out = room.student.problems.held_out
    seed = fold(config.seed, "held-out divergence")
    played = await play_held_out(sampler, held_out, measured_as(config, 1.0), seed, tell_failure)
    found: list[float | None] = [None] * len(played)
    for teacher in room.teachers.all:
        rows: list[int] = []
        pairs: list[Pair] = []
        for row, (builder, one) in enumerate(zip(held_out, played, strict=True)):
            if one.trajectory is None or room.teachers.of(builder.tags) is not teacher:
                continue
            read = await first_prompt(teacher.reader.problems.held_out[row])
            mine = pairs_of(one.trajectory, teacher, room.student, read, by_teacher=False)
            rows += [row] * len(mine)
            pairs += mine
        totals: dict[int, list[tuple[float, int]]] = {}
        for row, pair, teachers_U in zip(rows, pairs, await teacher_logprobs(teacher, pairs), strict=True):
            totals.setdefault(row, []).append((-log_ratios(pair, teachers_U)[1], pair.num_trained))
        for row, parts in totals.items():
            num = sum(count for _, count in parts)
            found[row] = sum(total for total, _ in parts) / num if num else None
    return found


def distill_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The figures of held-out problems, and the mean divergence where it was measured."""
    found = [row[DIVERGENCE] for row in rows if row.get(DIVERGENCE) is not None]
    return held_out_metrics(rows) | ({f"eval/{DIVERGENCE}": sum(found) / len(found)} if found else {})
