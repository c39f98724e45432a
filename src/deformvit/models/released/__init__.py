"""The authors' released files, both generations: weights (names and tables), YAML configurations, files on disk."""
