"""The planner: does a recipe fit the machines it is given, and what will it cost. Arithmetic alone: no GPU, no weights."""
