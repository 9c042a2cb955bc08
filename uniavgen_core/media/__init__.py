"""Media files, speech text, captions, mel, VAE and vocoder: everything around the network (SPEC section 9)."""
