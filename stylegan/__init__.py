"""StyleGAN2's parts and what is built of them: MMFS, the generator, the discriminator, and their files. Pure torch, nothing compiled.

Pictures are RGB from -1 to 1. A style is a stack of vectors w, one for each layer that is styled: [layers, B, width].
"""
