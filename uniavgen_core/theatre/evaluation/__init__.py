"""`uniavgen eval`: what generated clips are worth, measured on their pictures and sound."""
