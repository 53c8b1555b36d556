"""Configuration: one frozen model is the YAML file, the command line, the Prefect form and the schema."""
