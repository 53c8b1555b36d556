"""A run in Markdown: for an orchestrator's page and for the model card."""

from collections.abc import Sequence

from crucible_train.evaluation.comparison import Compared
from crucible_train.report.facts import RunFacts
from crucible_train.report.naming import shown_model
from crucible_train.report.win_rate import win_rate_lines

_JUDGES = (
    "This is a judge: shown two answers, it says which is better, by the probabilities of A, B and Tie. It judges "
    "where `env.options.judge` names this folder."
)


def comparison_table(compared: Sequence[Compared]) -> str:
    """Before and after as a Markdown table."""
    lines = ["| figure | before | after | change (95 % interval) | |", "|---|---:|---:|---|---|"]
    for row in compared:
        interval = f" [{row.difference.low:+.4g}, {row.difference.high:+.4g}]" if row.has_interval else ""
        change = f"{row.difference.value:+.4g}{interval}"
        lines.append(f"| {row.name} | {row.before.value:.4g} | {row.after.value:.4g} | {change} | {row.verdict} |")
    return "\n".join(lines)


def summary(facts: RunFacts) -> str:
    """What was done and what came of it."""
    train = facts.rendered["train"]
    measured = [*facts.compared, *facts.ended]
    set_aside = ", ".join(f"{count} {reason}" for reason, count in facts.num_bad_rows.items()) or "nothing"
    return "\n".join(
        [
            f"# {facts.title}",
            "",
            f"{shown_model(facts.config['model'])} on {facts.config['dataset']}: "
            f"{facts.result['num_steps']} steps over {train['num_examples']:,} examples "
            f"({train['num_tokens']:,} tokens). {facts.hardware}.",
            "",
            comparison_table(measured) if measured else "Nothing was held out, so nothing was measured.",
            *win_rate_lines(facts.win_rate),
            "",
            f"Set aside: {set_aside}.",
        ]
    )


def model_card(facts: RunFacts, base: str) -> str:
    """The ``README.md`` beside the published weights; ``base`` is where others find the base model."""
    about = (
        f"{summary(facts)}\n\nData: {facts.data['source']}, {facts.data['num_rows']:,} rows, {facts.data['format']}. "
        f"Rendered by `{facts.rendered['renderer']}`."
    )
    if facts.is_judge:
        about += f"\n\n{_JUDGES}"
    is_adapter = facts.config["peft"]["use_peft"] and not facts.is_judge
    return card("sft", base, about, facts.command, is_adapter=is_adapter)


def card(method: str, base: str, about: str, command: str, *, is_adapter: bool) -> str:
    """A model card: what it is, what is known of it, how it is loaded and how it was made."""
    usage = (
        f'model = AutoModelForCausalLM.from_pretrained("{base}")\nmodel = PeftModel.from_pretrained(model, folder)'
        if is_adapter
        else "model = AutoModelForCausalLM.from_pretrained(folder)"
    )
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer" + (
        "\nfrom peft import PeftModel" if is_adapter else ""
    )
    return "\n".join(
        [
            "---",
            f"base_model: {base}",
            f"library_name: {'peft' if is_adapter else 'transformers'}",
            f"tags: [crucible-train, {method}]",
            "---",
            "",
            about,
            "",
            "```python",
            imports,
            "",
            'folder = "."  # where this file lies',
            usage,
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            "```",
            "",
            f"Made with `{command}`.",
            "",
        ]
    )
