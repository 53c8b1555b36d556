"""What environments there are, and their options: ``python -m crucible_train.rl.environments [NAME]``."""

import sys

from crucible_train import terminal
from crucible_train.errors import ConfigError
from crucible_train.rl.environments import ENVIRONMENTS, describe, options_of


def main(words: list[str]) -> int:
    """Print one environment, or all of them."""
    try:
        for name in words or ENVIRONMENTS:
            terminal.say(f"{name}: {describe(name)}", style="bold")
            for option, field in options_of(name).model_fields.items():
                default = field.get_default(call_default_factory=True)
                terminal.say(f"  {option:<20} {field.description} [{default!r}]")
            terminal.say("")
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
