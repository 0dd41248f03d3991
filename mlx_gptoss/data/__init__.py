"""Files that come with the package: the vocabulary and the demo checkpoint."""
