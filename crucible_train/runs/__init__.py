"""Looking after run directories: ``python -m crucible_train.runs`` lists, shows, compares, tags and deletes them."""
