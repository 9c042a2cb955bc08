"""Media files, speech text, captions, mel, VAE and vocoder (docs/model.md section 9)."""

FPS = 16
"""Video frames a second, of everything that goes into or comes out of the model (docs/model.md section 1)."""
