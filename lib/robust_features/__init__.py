"""A small library behind the notebooks: robust and non-robust features in four papers."""
