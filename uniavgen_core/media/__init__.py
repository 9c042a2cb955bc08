"""Files, texts and latents: reading and writing media, mel, speech symbols, captions, VAE, vocoder (SPEC section 9)."""
