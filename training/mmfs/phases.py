"""StyleGAN2 and phases 1 to 3: what a step draws, what it trains, and its loss.

Each phase has `parts`, whatever has a state to keep, the running average as `average`, and `discriminator`;
`step(number)` takes one step and returns what it measured; `rows()` is a sheet of pictures by the average,
[rows][n, 3, S, S].
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from ...stylegan import losses
from ...stylegan.discriminator import TAPS, Discriminator
from ...stylegan.generator import Generator
from ...stylegan.stylizer import Stylizer
from ..stage import half, processes, share_gradients
from .data import Pictures
from .few_shot import FewShot, follow
from .gan import Adversary, adam, descend
from .guides import Guides

SHOWN = 8  # pictures in a row of a sheet


def unit(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures + 1) / 2


def share(settings: dict) -> int:
    """How many pictures of a batch this process takes."""
    return max(1, settings["batch"] // processes())


def in_parts(optimizer: torch.optim.Optimizer, count: int, part: int, loss: Callable[[slice], torch.Tensor]) -> float:
    """A step on the mean loss of `count` pictures, of which `part` are in memory at once; the loss."""
    optimizer.zero_grad()
    told = 0.0
    for start in range(0, count, part):
        rows = slice(start, min(start + part, count))
        value = loss(rows) * ((rows.stop - rows.start) / count)
        value.backward()
        told += float(value.detach())
    share_gradients([value for some in optimizer.param_groups for value in some["params"]])
    optimizer.step()
    return told


def oppose(phase: StyleGAN2 | Base) -> None:
    """The average and the optimizer of a network that learns against a discriminator, and what of all that is kept."""
    phase.average = copy.deepcopy(phase.network).requires_grad_(False)
    phase.optimizer = adam(phase.network.parameters(), phase.settings)
    phase.adversary = Adversary(phase.discriminator, phase.settings, phase.device)
    phase.parts = {
        "network": phase.network,
        "average": phase.average,
        "discriminator": phase.discriminator,
        "optimizer": phase.optimizer,
        "adversary": phase.adversary.optimizer,
    }


class StyleGAN2:
    """A generator of stylized portraits from pictures of them: phase 1 begins with it."""

    def __init__(self, settings: dict, art: Pictures, device: str):
        self.settings, self.art, self.device, self.size = settings, art, device, art.side
        channels = tuple(settings["channels"])
        self.network = Generator(channels, settings["style"], settings["mapping_layers"]).to(device)
        self.discriminator = Discriminator(tuple(settings["discriminator"] or channels[::-1])).to(device)
        oppose(self)
        self.z = torch.randn(2 * SHOWN, settings["style"], generator=torch.Generator().manual_seed(1)).to(device)

    def fake(self, count: int) -> torch.Tensor:
        z = torch.randn(2, count, self.settings["style"]).to(self.device)
        styles = [self.network.styles(self.network.map(each)) for each in z]
        if torch.rand(()) < self.settings["mixing"]:
            first = int(torch.randint(1, self.network.layers, ()))
            styles[0] = torch.cat([styles[0][:first], styles[1][first:]])
        with half(self.device):
            return self.network(styles[0], self.network.noise_maps(count, torch.default_generator, self.device)).float()

    def step(self, number: int) -> dict[str, torch.Tensor]:
        count = share(self.settings)
        with torch.no_grad():
            fake = self.fake(count)
        told = self.adversary.learn(self.art.draw(count, self.device), fake, number)
        loss = self.adversary.blame(self.fake(count))
        descend(self.optimizer, loss)
        follow(self.average, self.network, self.settings["ema"])
        return {"loss": loss.detach(), **told}

    @torch.no_grad()
    def rows(self) -> list[torch.Tensor]:
        drawn = [self.average(self.average.styles(self.average.map(z))) for z in self.z.split(SHOWN)]
        step = max(1, len(self.art) // SHOWN)
        return [torch.stack([self.art[row] for row in range(0, len(self.art), step)][:SHOWN]), *drawn]


class Encoder:
    """Phase 1, equation (1): the encoder learns to find in a sample of StyleGAN2 what its lower layers had put there.

    The sample's z and noise are given, so that only the structure is to be found. The layers above stay as they are.
    """

    TRAINED = ("encoder.", "decoder0.", "to_rgb0.")

    def __init__(
        self, settings: dict, generator: Generator, network: Stylizer, discriminator: Discriminator, device: str
    ):
        self.settings, self.device, self.size = settings, device, generator.size
        self.generator, self.network = generator.to(device).requires_grad_(False), network.to(device)
        self.discriminator = discriminator.to(device).requires_grad_(False)
        trained(self.network, self.TRAINED)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = adam([value for value in self.network.parameters() if value.requires_grad], settings)
        self.parts = {"network": self.network, "average": self.average, "optimizer": self.optimizer}
        self.shown = self.sample(torch.Generator().manual_seed(1), SHOWN)

    @torch.no_grad()
    def sample(self, generator: torch.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """(pictures, style, noise) of random z: the stylizer's noise maps are the generator's last."""
        z = torch.randn(count, self.generator.width, generator=generator).to(self.device)
        noise = self.generator.noise_maps(count, generator, self.device)
        with half(self.device):
            drawn = self.generator(self.generator.styles(self.generator.map(z)), noise).float().clamp(-1, 1)
        return drawn, self.network.style_from_seed(z), noise[1 - self.network.styles :]

    def step(self, number: int) -> dict[str, torch.Tensor]:
        count = share(self.settings)
        target, style, noise = self.sample(torch.default_generator, count)

        def loss(rows):
            with half(self.device):
                maps = [layer[rows] for layer in noise]
                fake = self.network(target[rows], style[:, rows], maps)
                return perceptual(self.discriminator, fake.float(), target[rows])

        told = in_parts(self.optimizer, count, self.settings["micro_batch"], loss)
        follow(self.average, self.network, self.settings["ema"])
        return {"loss": torch.tensor(told)}

    @torch.no_grad()
    def rows(self) -> list[torch.Tensor]:
        pictures, style, noise = self.shown
        return [pictures, self.average(pictures, style, noise)]


class Base:
    """Phase 2, equation (5): photos in, art out. All of the network learns, against a discriminator of the art."""

    def __init__(
        self,
        settings: dict,
        network: Stylizer,
        discriminator: Discriminator,
        photos: Pictures,
        art: Pictures,
        guides: Guides,
        device: str,
    ):
        self.settings, self.device, self.size, self.guides = settings, device, photos.side, guides
        self.photos, self.art = photos, art
        self.network, self.discriminator = network.to(device).requires_grad_(), discriminator.to(device)
        oppose(self)
        self.z = torch.randn(2, network.style, generator=torch.Generator().manual_seed(1)).to(device)

    def fake(self, photos: torch.Tensor) -> torch.Tensor:
        with half(self.device):
            style, noise = random_style(self.network, len(photos), self.size, self.settings["mixing"], self.device)
            return self.network(photos, style, noise).float()

    def step(self, number: int) -> dict[str, torch.Tensor]:
        photos = self.photos.draw(share(self.settings), self.device)
        with torch.no_grad():
            fake = self.fake(photos)
        told = self.adversary.learn(self.art.draw(len(photos), self.device), fake, number)
        fake = self.fake(photos)
        gan, structure = self.adversary.blame(fake), self.structure(fake, photos)
        descend(self.optimizer, gan + self.settings["structure"] * structure)
        follow(self.average, self.network, self.settings["ema"])
        return {
            "loss": (gan + self.settings["structure"] * structure).detach(),
            "gan": gan.detach(),
            "structure": structure.detach(),
            **told,
        }

    def structure(self, fake: torch.Tensor, photos: torch.Tensor) -> torch.Tensor:
        """(4)"""
        with half(self.device):
            mine, theirs = self.guides.keys(unit(fake)).float(), self.guides.keys(unit(photos)).float()
        return losses.structure(losses.self_similarity(mine), losses.self_similarity(theirs))

    @torch.no_grad()
    def rows(self) -> list[torch.Tensor]:
        photos = torch.stack([self.photos[row] for row in range(min(SHOWN, len(self.photos)))]).to(self.device)
        features = self.average.encode(photos)
        return [photos, *[self.average.decode(features, self.average.style_from_seed(z[None])) for z in self.z]]


class Mapper:
    """Phase 3, equation (6) under the loss (1): the mapper learns to name the style that its CLIP feature came from."""

    def __init__(
        self,
        settings: dict,
        network: Stylizer,
        discriminator: Discriminator,
        photos: Pictures,
        guides: Guides,
        device: str,
    ):
        self.settings, self.device, self.size, self.guides, self.photos = settings, device, photos.side, guides, photos
        plain = network
        network = Stylizer(plain.channels, plain.style, True, len(plain.mapping_z) - 1)
        network.load_state_dict(
            plain.state_dict()
            | {name: value for name, value in network.state_dict().items() if name.startswith("clip_mapper.")}
        )
        self.network = network.to(device)
        trained(self.network, ("clip_mapper.",))
        self.discriminator = discriminator.to(device).requires_grad_(False)
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.optimizer = adam(self.network.clip_mapper.parameters(), settings)
        self.parts = {"network": self.network, "average": self.average, "optimizer": self.optimizer}

    @torch.no_grad()
    def sample(self, count: int) -> tuple:
        """(features, noise, target, its CLIP features): photos in random styles."""
        photos = self.photos.draw(count, self.device)
        with half(self.device):
            style, noise = random_style(self.network, count, self.size, self.settings["mixing"], self.device)
            features = self.network.encode(photos)
            target = self.network.decode(features, style, noise).float()
        return features, noise, target, self.guides.see(unit(target))[0]

    def step(self, number: int) -> dict[str, torch.Tensor]:
        count = share(self.settings)
        features, noise, target, seen = self.sample(count)
        self.network.clip_mapper.train()

        def loss(rows):
            with half(self.device):
                style = self.network.style_from_clip(seen[rows])
                fake = self.network.decode(features[rows], style, [layer[rows] for layer in noise])
                return perceptual(self.discriminator, fake.float(), target[rows])

        told = in_parts(self.optimizer, count, self.settings["micro_batch"], loss)
        follow(self.average, self.network, self.settings["ema"])
        return {"loss": torch.tensor(told)}

    @torch.no_grad()
    def rows(self) -> list[torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            features, noise, target, seen = self.sample(SHOWN)
        return [target, self.average.decode(features, self.average.style_from_clip(seen), noise)]


class Tuned:
    """Phase 4: few-shot training for one style."""

    discriminator = None

    def __init__(self, training: FewShot, size: int):
        self.training, self.size, self.steps = training, size, iter(training)
        self.parts = {"training": training}

    @property
    def average(self) -> Stylizer:
        return self.training.average

    def step(self, number: int) -> dict[str, float]:
        return next(self.steps)

    @torch.no_grad()
    def rows(self) -> list[torch.Tensor]:
        shown = range(min(SHOWN, len(self.training.photos)))
        features = torch.cat([self.training.photo(row)[0] for row in shown])
        photos = torch.stack([self.training.photos[row] for row in shown])
        return [photos, self.average.decode(features, self.training.style)]


def trained(network: torch.nn.Module, starts: tuple[str, ...]) -> None:
    """Gradients for the parameters whose names begin so, and for no others."""
    for name, value in network.named_parameters():
        value.requires_grad_(name.startswith(starts))


def random_style(network: Stylizer, count: int, size: int, mixing: float, device) -> tuple:
    """(style [styles, count, width], noise) of random z, with this probability mixed with others after some layer."""
    a, b = (network.style_from_seed(z) for z in torch.randn(2, count, network.style).to(device))
    if torch.rand(()) < mixing:
        a = network.mixed(a, b, int(torch.randint(1, network.styles, ())))
    return a, network.noise_maps(count, (size, size), torch.default_generator, device)


def perceptual(discriminator: Discriminator, fake: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(1), with the discriminator's features at `TAPS`."""
    mine, theirs = (discriminator.features(x, TAPS) for x in (fake, target))
    return losses.reconstruction(fake, target, [x.float() for x in mine], [x.float() for x in theirs])
