"""What developers run and users don't. Not in the wheel."""
