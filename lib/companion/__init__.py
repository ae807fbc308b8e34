"""The project behind the notebooks: settings, records, datasets, groups of networks, claims and the report."""
