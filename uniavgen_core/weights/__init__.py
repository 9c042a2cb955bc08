"""Weight files of every part: what a file is, loading, conversion (SPEC sections 2 and 9)."""
