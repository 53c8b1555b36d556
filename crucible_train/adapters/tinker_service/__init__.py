"""The sampling port over the Tinker service, through its official SDK."""
