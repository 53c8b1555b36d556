r"""Grade-school word problems (GSM8K, Cobbe et al., arXiv 2110.14168), or any whose answers come to a number."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from crucible_train.config.base import option
from crucible_train.errors import DataError
from crucible_train.ports import DatasetStore
from crucible_train.renderers import Renderer
from crucible_train.rl.numeric_answer import final_number, read_number, stated
from crucible_train.rl.problem_env import ProblemEnv
from crucible_train.rl.problem_set import FiniteProblems, Problem
from crucible_train.rl.prompts import Prompt, PromptSource

_INSTRUCTIONS = {
    "hashes": "End with a line that holds the answer as a number: #### number",
    "boxed": r"Put the answer, a number, within \boxed{}.",
}
_MARKS = {"hashes": "####", "boxed": r"\boxed{"}


class Gsm8kOptions(PromptSource):
    """Which word problems are asked, and the form of their answers."""

    answer_form: Literal["hashes", "boxed"] = option("hashes", r"the answer stands after ####, or within \boxed{}")
    format_coef: float = option(0.1, "what an answer in the wrong form costs, 0 or more", ge=0)


class Gsm8kEnv(ProblemEnv):
    """One word problem."""

    def __init__(self, prompt: Prompt, options: Gsm8kOptions, renderer: Renderer) -> None:
        """Ask it."""
        super().__init__(renderer, format_coef=options.format_coef, before=prompt.messages[:-1], tools=prompt.tools)
        self._prompt, self._form = prompt, options.answer_form
        self._number = final_number(prompt.reference or "")

    @property
    def question(self) -> str:
        """The problem, and the form of its answer."""
        return f"{self._prompt.messages[-1].text}\n\n{_INSTRUCTIONS[self._form]}"

    def check_answer(self, text: str) -> float:
        """Whether it comes to the right number, whatever its form."""
        return float(self._number is not None and final_number(text) == self._number)

    def check_format(self, text: str) -> bool:
        """Whether it states one number, once, in the form asked for."""
        if text.count(_MARKS[self._form]) != 1 or text.count(_MARKS[_OTHER[self._form]]):
            return False
        return (found := stated(text)) is not None and read_number(found) is not None


_OTHER = {"hashes": "boxed", "boxed": "hashes"}


class Gsm8k(FiniteProblems[Prompt]):
    """The word problems of a data set; 200 of GSM8K's training set are built in.

    Raises:
        DataError: a data set cannot be used, or an answer of it has no number.
    """

    Options = Gsm8kOptions

    def __init__(self, options: Gsm8kOptions, renderer: Renderer, seed: int, store: DatasetStore) -> None:
        """Read the data sets."""
        prompts, held_out = options.read(store)
        _check_numbers([*prompts, *(held_out if not isinstance(held_out, int) else ())])

        def build(prompt: Prompt) -> Problem:
            return Problem(f"gsm8k: {prompt.digest}", partial(Gsm8kEnv, prompt, options, renderer), ("gsm8k",))

        super().__init__(prompts, lambda prompt: prompt.digest, build, held_out, seed)


def _check_numbers(prompts: Sequence[Prompt]) -> None:
    for prompt in prompts:
        if final_number(prompt.reference or "") is None:
            raise DataError(f"{prompt.where}: the answer comes to no number")
