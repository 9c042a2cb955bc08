"""Weight files of every part: what a file is, loading, conversion (docs/model.md sections 2 and 9)."""
