"""Media files, speech text, captions, mel, VAE and vocoder: all around the network (SPEC section 9)."""
