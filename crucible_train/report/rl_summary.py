"""A run of reinforcement learning in Markdown: for an orchestrator's page and for the model card."""

from crucible_train.report.naming import shown_model
from crucible_train.report.rl_facts import RLFacts
from crucible_train.report.summary import card, comparison_table


def summary(facts: RLFacts) -> str:
    """What was done and what came of it."""
    train = facts.config["train"]
    return "\n".join(
        [
            f"# {facts.title}",
            "",
            f"{shown_model(facts.config['model'])} in {facts.config['env']['name']}: "
            f"{facts.result['num_steps']} steps of {train['groups_per_batch']} problems "
            f"with {train['num_generations']} answers each. {facts.hardware}.",
            "",
            comparison_table(facts.compared) if facts.compared else "No problems were held out.",
        ]
    )


def model_card(facts: RLFacts, base: str) -> str:
    """The ``README.md`` beside the published weights; ``base`` is where others find the base model."""
    about = f"{summary(facts)}\n\nChat format: `{facts.renderer}`."
    return card("rl", base, about, facts.command, is_adapter=facts.config["peft"]["use_peft"])
