"""Media files, speech text, captions, mel, VAE and vocoder: all around the network (SPEC section 9)."""

FPS = 16
"""Video frames a second, of everything that goes into or comes out of the model (SPEC section 1)."""
