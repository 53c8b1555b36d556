"""The report of distillation: one HTML file, and the same in Markdown."""

from crucible_train.report.charts import divergence_chart, small_chart, svg
from crucible_train.report.naming import shown_model
from crucible_train.report.rl_facts import RLFacts
from crucible_train.report.rl_page import problem_page
from crucible_train.report.summary import card, comparison_table

_CHARTS = (
    ("train/loss", "loss"),
    ("sample/answer_tokens", "tokens an answer"),
    ("optim/grad_norm", "gradient norm before clipping"),
    ("optim/learning_rate", "learning rate"),
)
_KINDS = {
    "start": "the model before training",
    "student": "the model itself as it is at each step: its divergence before and after is from two",
}


def page(facts: RLFacts) -> str:
    """The whole page as text. Everything from data is escaped."""
    reward = svg(small_chart(facts.metrics, "reward/mean", "mean reward of the step's answers"))
    first = divergence_chart(facts.metrics)
    return problem_page(facts, "distill_page.html.jinja", _CHARTS, first, reward=reward, teacher=teacher_of(facts))


def teacher_of(facts: RLFacts) -> str:
    """Who teaches, in words."""
    teacher = facts.config["teacher"]
    served = teacher["tinker"]["model"] or teacher["server"]["base_url"]
    name = _KINDS.get(teacher["kind"]) or teacher["model"] or served
    others = "".join(f", and another for {tag}" for tag in facts.config["teachers"])
    reads = " with more to read" if teacher["before"] or teacher["kind"] in _KINDS else ""
    return f"{name}{reads}{others}"


def summary(facts: RLFacts) -> str:
    """What was done and what came of it."""
    train = facts.config["train"]
    return "\n".join(
        [
            f"# {facts.title}",
            "",
            f"{shown_model(facts.config['model'])} in {facts.config['env']['name']}, taught by {teacher_of(facts)}: "
            f"{facts.result['num_steps']} steps of {train['groups_per_batch']} problems with "
            f"{train['num_generations']} answers each. {facts.hardware}.",
            "",
            comparison_table(facts.compared) if facts.compared else "No problems were held out.",
        ]
    )


def model_card(facts: RLFacts, base: str) -> str:
    """The ``README.md`` beside the published weights; ``base`` is where others find the base model."""
    about = f"{summary(facts)}\n\nChat format: `{facts.renderer}`."
    return card("distill", base, about, facts.command, is_adapter=facts.config["peft"]["use_peft"])
