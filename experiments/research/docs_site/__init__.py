"""The documentation as a site that opens from the disk: hooks for mkdocs, and what its theme lacks."""
