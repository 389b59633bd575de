"""Sections of reports about evaluated networks: of classifiers, and of segmenters."""
