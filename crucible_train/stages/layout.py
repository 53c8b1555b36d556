"""What the folders that stages leave call their files."""

RESULTS = "results.jsonl"
"""Of an evaluation: a line for every row that was measured."""
SUMMARY = "summary.json"
"""Of an evaluation: its metrics."""

PUBLISHED = "model"
"""Of a package: the folder that a user takes away."""
EVALUATION = "eval"
"""Of a package: the folder with what was measured before and after."""
REPORT = "report.html"
SUMMARY_PAGE = "summary.md"
LOSS_CURVE = "loss.png"
