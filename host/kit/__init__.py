"""What every method in `host` is made of: calls, sites of attention, prompts, latents, masks, and what the host manages for us."""
