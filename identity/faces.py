"""What Face Identity Encode knows of a person."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class FaceIdentity:
    """One person or several, as Face Adapter Apply takes them.

    embedding: [people, width], the recogniser's embeddings, each of length 1
    clip:      [people, tokens, hidden], penultimate hidden states of the aligned face; None without clip_vision
    grey:      [1, tokens, hidden], the same of a grey picture: CLIP's part of "nobody"
    found:     False where no face was found and the user chose to go on; everything else is None then
    """

    embedding: torch.Tensor | None = None
    clip: torch.Tensor | None = None
    grey: torch.Tensor | None = None
    found: bool = True


def mean_identity(identity: FaceIdentity) -> FaceIdentity:
    """Several photos of one person as one: the mean of the embeddings, brought back to length 1, and of the CLIP states.

    The projection knows embeddings of length 1 only. The aligned faces show the same parts at the same CLIP tokens.
    """
    if len(identity.embedding) == 1:
        return identity
    clip = None if identity.clip is None else identity.clip.mean(0, keepdim=True)
    embedding = torch.nn.functional.normalize(identity.embedding.mean(0, keepdim=True), dim=-1)
    return FaceIdentity(embedding, clip, identity.grey)
