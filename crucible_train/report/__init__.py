"""What a person reads after a run: one HTML page that needs nothing else, and a summary in Markdown."""
