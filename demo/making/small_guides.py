"""The microworld's CLIP and DINO, which guide the small MMFS as the real ones guide the large one.

``python headless/pack.py --cpu demo.making.small_guides FOLDER`` renders people in four styles each and leaves in
FOLDER `clip` (a CLIPModel of 64-pixel pictures with a vocabulary of its own), `dino.safetensors` (a vision transformer
in DINO's layout) and scores.json, what both do on people and phrases that they were not trained on. The same command
goes on where it was interrupted.

CLIP learns as its publishers' did, from pictures and their captions, but a caption that is true of several pictures of
a batch belongs to all of them. DINO is not self-supervised: its keys' self-similarity is taught to be that of the
drawing below all styles (contours, silhouette, hair, relief), whatever style the picture is in.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torchvision.transforms.functional import normalize

from ...evaluation.clip_model import MEAN, STD, TOKENS, Clip
from ...stylegan import dino, losses
from ...training.stage import Stage, half, log, warm
from ..brushes import stroke
from ..portraits import caption_words, draw, sample_identities
from ..styles import NAMES, VARIANTS, paint

SIDE, SEED, AT_ONCE = 64, 52_000_000, 16
PEOPLE, EACH = 4_000, 4  # styles of each person
WIDTH = 128  # of features, and so of the small MMFS's styles
STEPS, BATCH, RATE = {"clip": 800, "dino": 700}, {"clip": 128, "dino": 48}, 1e-3
PATCH, GRID = 8, SIDE // 8
LAYERS = ("line", "figure", "hair", "relief")

COLOURED = ("photo", "cartoon", "pixel", "glass")  # styles in which words of colour can be seen
COLOURS = ("skin", "hair", "background", "shirt")
PLAIN = ["{s}", "a {s}", "{s} portrait", "a {s} portrait", "{s} picture of a person", "the face in {s}", "{s} style"]
FULL = ["{s} portrait, {w}", "a {s} picture of a person with {w}", "{w}, {s}", "the person with {w} in {s} style"]
WORDS = ["portrait, {w}", "a person with {w}", "{w}"]
NEW = ["a face in {s} style", "picture of the portrait, {s}", "the {s}", "{s} style picture"]  # asked, never taught


def people(first: int, count: int) -> dict[str, torch.Tensor]:
    return sample_identities(count, torch.Generator().manual_seed(SEED + first))


def render(folder: Path, total: int) -> None:
    """pictures.npy uint8 [people, 4, 3, 64, 64], styles.npy [people, 4], layers.npy uint8 [people, 4, 64, 64]."""
    if (folder / "layers.npy").exists():
        return
    shapes = {
        "pictures": (total, EACH, 3, SIDE, SIDE),
        "styles": (total, EACH),
        "layers": (total, len(LAYERS), SIDE, SIDE),
    }
    made = {
        name: np.lib.format.open_memmap(folder / f"{name}.part", "w+", np.uint8, shape)
        for name, shape in shapes.items()
    }
    small = lambda x: (F.avg_pool2d(x, 2).clamp(0, 1) * 255).round().byte().numpy()
    for first in range(0, total, AT_ONCE):
        count = min(AT_ONCE, total - first)
        generator, rows = torch.Generator().manual_seed(SEED + total + first), slice(first, first + count)
        layers = draw(people(first, count), 2 * SIDE)
        styles = torch.rand(count, len(NAMES), generator=generator).argsort(1)[:, :EACH]
        for k in range(EACH):
            variant = torch.randint(VARIANTS, (count,), generator=generator)
            made["pictures"][rows, k] = small(paint(layers, styles[:, k], variant, generator))
        made["styles"][rows] = styles.numpy()
        drawing = [stroke(layers, 8), layers.figure, (layers.hair > 5).float(), layers.relief * 2]
        made["layers"][rows] = small(torch.cat(drawing, 1))
    for name, table in made.items():
        table.flush()
        (folder / f"{name}.part").rename(folder / f"{name}.npy")


class World:
    """Pictures, styles and drawings of the folder; the last eighth of the people is held out."""

    def __init__(self, folder: Path):
        self.pictures, self.styles, self.layers = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("pictures", "styles", "layers")
        )
        self.total = len(self.pictures)
        self.known = self.total - self.total // 8

    def draw(
        self, count: int, held_out: bool = False, styles: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(people [count], which of their styles [count, styles], pictures [count, styles, 3, 64, 64] from 0 to 1)"""
        low, high = (self.known, self.total) if held_out else (0, self.known)
        who = torch.randperm(high - low)[:count] + low
        which = torch.rand(len(who), EACH).argsort(1)[:, :styles]
        return who, which, torch.from_numpy(self.pictures[who[:, None], which]).float() / 255


def soften(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures as a generator may have left them: some are less sharp."""
    soft = F.interpolate(F.avg_pool2d(pictures, 2), scale_factor=2, mode="bilinear")
    return torch.lerp(pictures, soft, (torch.rand(len(pictures), 1, 1, 1) * 2 - 1).clamp(0, 1))


# --- captions


class Captions:
    """What is true of each picture, and phrases of it."""

    def __init__(self, world: World):
        self.styles = torch.from_numpy(np.array(world.styles)).long()
        self.said = []  # of each person: words that show in all styles, and in all colours
        for first in range(0, world.total, AT_ONCE):
            count = min(AT_ONCE, world.total - first)
            who = people(first, count)
            for one in range(count):
                words = [word for word in caption_words(who, one) if not word.endswith("eyes")]
                self.said.append(
                    [[word for word in words if word.split()[0] not in HUES or word.split()[-1] not in COLOURS], words]
                )
        self.names = [*NAMES, *sorted({word for _, words in self.said for word in words})]
        self.number = {name: at for at, name in enumerate(self.names)}

    def words(self, person: int, which: int) -> list[str]:
        return self.said[person][NAMES[self.styles[person, which]] in COLOURED]

    def true(self, who: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """[B, names] of 0 and 1"""
        table = torch.zeros(len(who), len(self.names))
        for row, (person, k) in enumerate(zip(who.tolist(), which.tolist())):
            table[row, [int(self.styles[person, k]), *(self.number[word] for word in self.words(person, k))]] = 1
        return table

    def apart(self, style: int, word: str) -> bool:
        """Whether this word is never said of this style in training."""
        return (5 * style + self.number[word]) % 6 == 0

    def phrase(self, person: int, which: int, held_out: bool = False) -> tuple[str, list[int]]:
        """A caption, and the numbers of all that it says. Held out: one word that training never said of this style."""
        style = int(self.styles[person, which])
        words = [word for word in self.words(person, which) if self.apart(style, word) == held_out]
        pick = lambda some: some[int(torch.randint(len(some), ()))]
        kind = int(torch.randint(4, ()))
        if held_out:
            word = pick(words)
            return pick(FULL).format(s=NAMES[style], w=word), [style, self.number[word]]
        if kind == 0 or not words:
            return pick(PLAIN).format(s=NAMES[style]), [style]
        chosen = [words[at] for at in torch.randperm(len(words))[: int(torch.randint(1, 4, ()))]]
        numbers, told = [self.number[word] for word in chosen], ", ".join(chosen)
        if kind == 1:
            return pick(WORDS).format(w=told), numbers
        return pick(FULL).format(s=NAMES[style], w=told), [style, *numbers]


HUES = {
    name.split()[0]
    for name in (
        "pale fair tan brown dark black blond red grey blue pink white green yellow purple orange teal"
    ).split()
}


def alphabet() -> list[str]:
    """CLIP's printable stand-ins for the 256 bytes, in its order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [*map(chr, shown), *(chr(256 + at) for at in range(len(hidden)))]


def pair_up(words: list[str]) -> list[tuple[str, str]]:
    """The merges of byte pair encoding by which each of the words becomes one token: the most frequent pair first."""
    spelled, merges = [[*word[:-1], word[-1] + "</w>"] for word in words], []
    while pairs := Counter(pair for parts in spelled for pair in zip(parts, parts[1:])):
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        for parts in spelled:
            for at in range(len(parts) - 1):
                if tuple(parts[at : at + 2]) == merges[-1]:  # past the end of what became shorter nothing is equal
                    parts[at : at + 2] = ["".join(merges[-1])]
    return merges


def write_vocabulary(folder: Path, names: list[str]) -> int:
    """vocab.json and merges.txt of a CLIP tokenizer that knows the captions' words and spells others; its size."""
    texts = [*names, *PLAIN, *FULL, *WORDS, *NEW, "photo"]
    words = sorted(
        {word for text in texts for word in "".join(c if c.isalpha() else " " for c in text).split()} - {"s", "w"}
    )
    merges = pair_up(words)
    letters = alphabet()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: at for at, token in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return len(tokens)


# --- CLIP


def new_clip(vocabulary: int):
    """5 layers: MMFS looks at what leaves the fourth."""
    from transformers import CLIPConfig, CLIPModel

    sizes = {"num_attention_heads": 4, "attn_implementation": "eager"}
    text = {
        **sizes,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "vocab_size": vocabulary,
        "max_position_embeddings": TOKENS,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    vision = {
        **sizes,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 5,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def train_clip(folder: Path, world: World, captions: Captions, steps: int) -> None:
    from transformers import CLIPTokenizer

    target = folder / "clip"
    if (target / "model.safetensors").exists():
        return
    target.mkdir(exist_ok=True)
    torch.manual_seed(16)
    model = new_clip(write_vocabulary(target, captions.names)).train()
    tokenize = CLIPTokenizer.from_pretrained(target, local_files_only=True)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.05)
    for step, progress in (stage := Stage(folder / "clip.progress", steps, model=model, optimizer=optimizer)):
        who, which, pictures = world.draw(BATCH["clip"])
        told = [captions.phrase(person, k) for person, k in zip(who.tolist(), which[:, 0].tolist())]
        tokens = tokenize(
            [text for text, _ in told], padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        says = torch.zeros(len(told), len(captions.names))
        for row, (_, numbers) in enumerate(told):
            says[row, numbers] = 1
        fits = (captions.true(who, which[:, 0]) @ says.T == says.sum(1)).float()
        with half("cpu"):
            seen = model.vision_model(pixel_values=normalize(soften(pictures[:, 0]), MEAN, STD)).pooler_output
            read = model.text_model(**tokens).pooler_output
            seen, read = model.visual_projection(seen).float(), model.text_projection(read).float()
        close = F.normalize(seen, dim=1) @ F.normalize(read, dim=1).T * model.logit_scale.exp().clamp(max=60)
        loss = (
            F.cross_entropy(close, fits / fits.sum(1, keepdim=True))
            + F.cross_entropy(close.T, fits.T / fits.T.sum(1, keepdim=True))
        ) / 2
        stage.tell(loss)
        down(optimizer, loss, RATE * warm(step, 100) * (1 - 0.98 * progress))
    model.half().save_pretrained(target)


def down(optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    """training.stage.descend without its dividing among processes: one trains here."""
    optimizer.zero_grad()
    loss.backward()
    for some in optimizer.param_groups:
        some["lr"] = rate
        torch.nn.utils.clip_grad_norm_(some["params"], 1.0)
    optimizer.step()


# --- DINO


def drawing(layers: np.ndarray) -> torch.Tensor:
    """Layers uint8 [B, 4, 64, 64] -> the self-similarity [B, 65, 65] of what the patches show; first the mean."""
    x = torch.from_numpy(layers).float() / 255
    line = F.avg_pool2d(x[:, :1], 2)  # 4 x 4 values in a patch; 2 x 2 of the others
    fine = F.pixel_unshuffle(line, PATCH // 2)
    coarse = F.pixel_unshuffle(F.avg_pool2d(x[:, 1:], 4), PATCH // 4)
    tokens = torch.cat([fine * 1.5, coarse], 1).flatten(2).mT
    tokens = tokens - torch.tensor([0.25] * fine.shape[1] + [0.5] * 4 + [0.2] * 4 + [0.3] * 4)  # about the means
    return losses.self_similarity(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))


def train_dino(folder: Path, world: World, steps: int) -> None:
    if (folder / "dino.safetensors").exists():
        return
    torch.manual_seed(17)
    model = dino.Dino(WIDTH, 4, PATCH, GRID, 2 * WIDTH)
    for value in (model.cls_token, model.pos_embed):
        torch.nn.init.normal_(value, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.02)
    for step, progress in (stage := Stage(folder / "dino.progress", steps, model=model, optimizer=optimizer)):
        who, _, pictures = world.draw(BATCH["dino"], styles=2)
        with half("cpu"):
            keys = model(soften(pictures.flatten(0, 1)))
        wanted = drawing(world.layers[who]).repeat_interleave(2, 0)
        loss = losses.structure(losses.self_similarity(keys.float()), wanted)
        stage.tell(loss)
        down(optimizer, loss, RATE * warm(step, 100) * (1 - 0.98 * progress))
    save_file(
        {name: value.half() for name, value in model.state_dict().items()},
        folder / "dino.safetensors",
        metadata={"recipe": "demo/making/small_guides.py", "steps": str(steps)},
    )


# --- what they can do


@torch.no_grad()
def scores(folder: Path, world: World, captions: Captions) -> dict[str, float]:
    """On people that were not trained on; `new` phrases and pairs of style and word neither."""
    torch.manual_seed(18)
    clip, keys = Clip(folder / "clip", "cpu"), dino.load(folder / "dino.safetensors")
    who, which, pictures = world.draw(384, held_out=True, styles=2)
    style = captions.styles[who, which[:, 0]]
    seen = torch.cat([clip.see(part)[0] for part in pictures[:, 0].split(64)])
    told = {}
    for name, templates in (("styles, taught phrases", PLAIN), ("styles, new phrases", NEW)):
        words = F.normalize(
            torch.stack([torch.stack([clip.text(t.format(s=s)) for t in templates]) for s in NAMES]), dim=-1
        )
        told[name] = float(
            torch.stack([(seen @ words[:, t].T).argmax(1) == style for t in range(len(templates))]).float().mean()
        )
    rows = [
        row
        for row in range(len(who))
        if any(captions.apart(int(style[row]), word) for word in captions.words(int(who[row]), int(which[row, 0])))
    ]
    phrases = [captions.phrase(int(who[row]), int(which[row, 0]), held_out=True) for row in rows]
    says = torch.zeros(len(rows), len(captions.names))
    for row, (_, numbers) in enumerate(phrases):
        says[row, numbers] = 1
    wrong = captions.true(who[rows], which[rows, 0]) @ says.T != says.sum(1)
    close = seen[rows] @ torch.stack([clip.text(text) for text, _ in phrases]).T
    right = close.diag()[:, None] > close
    rival = wrong & (style[rows][:, None] == style[rows])
    told["new pairs of style and word, against another caption"] = float(right[wrong].float().mean())
    told["the same, against another caption of that style"] = float(right[rival].float().mean())
    similarity = torch.cat([losses.self_similarity(keys(part)) for part in pictures.flatten(0, 1).split(64)]).unflatten(
        0, (-1, 2)
    )
    wanted = drawing(world.layers[who])
    told["structure error"] = float(
        losses.structure(similarity[:, 0], wanted) / wanted.sub(wanted.mean(0)).square().mean()
    )
    told["structure, same person in two styles"] = float(losses.structure(similarity[:, 0], similarity[:, 1]))
    told["structure, another person in the same style"] = float(
        torch.stack(
            [
                losses.structure(similarity[one, 0], similarity[other, 0])
                for one in range(len(who))
                for other in range(one + 1, len(who))
                if style[one] == style[other]
            ][:500]
            or [torch.tensor(torch.nan)]
        ).mean()
    )
    return {name: round(value, 5) for name, value in told.items()}


def main(folder: Path, total: int = PEOPLE, share: float = 1.0) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    render(folder, total)
    world = World(folder)
    captions = Captions(world)
    train_clip(folder, world, captions, max(1, int(STEPS["clip"] * share)))
    train_dino(folder, world, max(1, int(STEPS["dino"] * share)))
    told = scores(folder, world, captions)
    (folder / "scores.json").write_text(json.dumps(told, indent=2) + "\n")
    log.info("%s", told)


if __name__ == "__main__":
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(Path(sys.argv[1]), *(kind(word) for kind, word in zip((int, float), sys.argv[2:])))
