"""MMFS's training: a StyleGAN2 of stylized portraits, phases 1 to 4, and the command that runs them."""
