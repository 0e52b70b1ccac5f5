"""Ray actors: thin wrappers of plain classes, and their groups as the loop's roles."""
