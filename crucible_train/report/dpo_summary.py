"""A run of learning from preferences in Markdown: for an orchestrator's page and for the model card."""

from crucible_train.judges import SCALAR_HEAD
from crucible_train.report.dpo_facts import DPOFacts
from crucible_train.report.naming import shown_model
from crucible_train.report.summary import card, comparison_table
from crucible_train.report.win_rate import win_rate_lines

_REWARDS = (
    f"This is a reward model: an answer's reward is `w . h`, h the last hidden state at the end of its turn and w in "
    f"`{SCALAR_HEAD}`. It judges where `env.options.judge` names this folder."
)


def summary(facts: DPOFacts) -> str:
    """What was done and what came of it."""
    train = facts.rendered["train"]
    set_aside = ", ".join(f"{count} {reason}" for reason, count in facts.num_bad_rows.items()) or "nothing"
    return "\n".join(
        [
            f"# {facts.title}",
            "",
            f"{shown_model(facts.config['model'])} on {facts.config['dataset']}: {facts.result['num_steps']} steps of "
            f"{facts.config['preference']['loss_type']} over {train['num_examples']:,} preferences "
            f"({train['num_tokens']:,} tokens). {facts.hardware}.",
            "",
            comparison_table(facts.compared) if facts.compared else "Nothing was held out, so nothing was measured.",
            *win_rate_lines(facts.win_rate),
            "",
            f"Set aside: {set_aside}.",
        ]
    )


def model_card(facts: DPOFacts, base: str) -> str:
    """The ``README.md`` beside the published weights; ``base`` is where others find the base model."""
    about = (
        f"{summary(facts)}\n\nData: {facts.data['source']}, {facts.data['num_rows']:,} preferences, "
        f"{facts.data['format']}. Rendered by `{facts.rendered['renderer']}`."
    )
    is_reward_model = facts.config["preference"]["loss_type"] == "bradley_terry"
    if is_reward_model:
        about += f"\n\n{_REWARDS}"
    return card("dpo", base, about, facts.command, is_adapter=facts.config["peft"]["use_peft"] and not is_reward_model)
