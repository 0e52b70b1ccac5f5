"""Samples of localization tasks: records, readers of the official formats, builders, and the training stream."""
