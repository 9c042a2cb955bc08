"""`uniavgen eval`: measures of generated clips, taken from their video and audio."""
