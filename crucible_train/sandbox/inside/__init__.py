"""What runs inside the sandbox. This folder alone is shown to it."""
