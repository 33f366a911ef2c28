"""Ready-to-use input templates and campaign files."""
