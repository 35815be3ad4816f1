"""The papers' tables with the numbers of a run beside the papers' own."""

from __future__ import annotations

# (column, arrow, metric of ours, digits)
FASTFACE = (("ID", "up", "identity", 3), ("CLIP", "up", "clip", 3), ("AE", "up", "aesthetic", 3), ("FFC", "down", "face_fails", 0))
HALF = "@0.5"  # after a blank, ends the name of a method that was run with lora_scale 0.5

# FastFace, table 1: four values at lora_scale 1.0, four at 0.5.
FASTFACE_1 = {
    "Hyper (base)": (0.567, 0.244, 6.092, 2, 0.381, 0.258, 6.273, 88),
    "Hyper + FF_AM1": (0.602, 0.247, 6.134, 2, 0.445, 0.259, 6.309, 72),
    "Hyper + FF_AM2": (0.585, 0.236, 6.161, 0, 0.450, 0.251, 6.348, 34),
    "Lightning (base)": (0.504, 0.242, 6.014, 4, 0.359, 0.251, 6.150, 89),
    "Lightning + FF_AM1": (0.543, 0.247, 6.112, 2, 0.427, 0.256, 6.254, 66),
    "Lightning + FF_AM2": (0.542, 0.232, 6.120, 0, 0.448, 0.244, 6.271, 33),
    "LCM (base)": (0.515, 0.243, 5.770, 53, 0.344, 0.258, 5.911, 288),
    "LCM + FF_AM1": (0.525, 0.244, 5.796, 37, 0.383, 0.258, 5.968, 202),
    "LCM + FF_AM2": (0.533, 0.229, 5.807, 20, 0.406, 0.246, 5.979, 136),
    "Turbo (base)": (0.336, 0.246, 5.689, 161, 0.177, 0.257, 5.791, 242),
    "Turbo + FF_AM1": (0.416, 0.249, 5.698, 139, 0.239, 0.262, 5.757, 431),
    "Turbo + FF_AM2": (0.409, 0.242, 5.707, 94, 0.244, 0.256, 5.798, 271),
}

ZEPO_2_COLUMNS = (("LPIPS", "down", "lpips", 3), ("CLIP-IQA", "up", "clip_iqa", 3), ("Style", "down", "style_loss", 3),
                  ("Fine-tuning(s)", "down", "fine_tuning_seconds", 3), ("Inference(s)", "down", "seconds", 3))
ZEPO_2 = {
    "JoJoGAN": (0.550, 0.538, 3.742, 48.524, 0.052),
    "DynaGAN": (0.588, 0.555, 2.810, 1156.822, 0.041),
    "NADA": (0.561, 0.566, 4.813, 155.321, 0.091),
    "InST": (0.564, 0.727, 5.775, 2007.966, 6.932),
    "VCT": (0.348, 0.467, 5.887, 374.117, 37.850),
    "Our": (0.261, 0.858, 5.213, 0, 0.684),
}

ZEPO_3_COLUMNS = (("CLIP-IQA", "up", "clip_iqa", 3), ("LPIPS", "down", "lpips", 3), ("Style", "down", "style_loss", 3),
                  ("Inference(s)", "down", "seconds", 3))
ZEPO_3 = {
    "W/ FM T=25": (0.797, 0.470, 1.628, 2.862),
    "W/ FM T=8": (0.835, 0.409, 1.848, 1.049),
    "W/ FM T=4": (0.823, 0.376, 1.993, 0.634),
    "W/ FM T=2": (0.781, 0.326, 2.181, 0.416),
    "W/ FM T=1": (0.753, 0.242, 2.357, 0.304),
    "W/o FM T=25": (0.778, 0.440, 1.747, 3.434),
    "W/o FM T=8": (0.844, 0.413, 1.994, 1.232),
    "W/o FM T=4": (0.817, 0.368, 2.094, 0.724),
    "W/o FM T=2": (0.779, 0.313, 2.228, 0.467),
    "W/o FM T=1": (0.766, 0.226, 2.411, 0.355),
}

FASTFACE_2_COLUMNS = (("face_sim", "up", "identity", 3), ("CLIP-score", "up", "clip", 3), ("IR", "up", "image_reward", 3),
                      ("FCS", "up", "face_style", 3))
FASTFACE_2 = {
    "Hyper (base)": (0.519, 0.249, 0.988, 0.180),
    "Hyper + DCG": (0.442, 0.264, 1.094, 0.184),
    "Lightning (base)": (0.463, 0.245, 0.728, 0.175),
    "Lightning + DCG": (0.392, 0.264, 0.921, 0.181),
    "LCM (base)": (0.439, 0.259, 0.540, 0.180),
    "LCM + DCG": (0.336, 0.270, 0.639, 0.181),
    "Turbo (base)": (0.310, 0.252, 0.888, 0.165),
    "Turbo + DCG": (0.254, 0.277, 1.007, 0.175),
}

# Table 3, realistic prompts.
FASTFACE_3 = {
    "Hyper (base)": (0.591, 0.241, 6.008, 0, 0.408, 0.255, 6.229, 19),
    "Hyper + AM1": (0.673, 0.234, 6.017, 1, 0.523, 0.247, 6.220, 10),
    "Hyper + AM2": (0.642, 0.224, 6.057, 0, 0.517, 0.239, 6.265, 3),
    "Lightning (base)": (0.525, 0.240, 5.929, 0, 0.386, 0.249, 6.079, 18),
    "Lightning + AM1": (0.612, 0.233, 5.930, 0, 0.494, 0.241, 6.088, 12),
    "Lightning + AM2": (0.589, 0.218, 5.971, 0, 0.496, 0.231, 6.107, 1),
    "LCM (base)": (0.552, 0.235, 5.754, 3, 0.380, 0.249, 5.927, 46),
    "LCM + AM1": (0.610, 0.227, 5.783, 1, 0.477, 0.240, 5.942, 34),
    "LCM + AM2": (0.597, 0.214, 5.802, 1, 0.476, 0.231, 5.974, 18),
    "Turbo (base)": (0.349, 0.243, 5.650, 94, 0.189, 0.250, 5.764, 116),
    "Turbo + AM1": (0.467, 0.235, 5.635, 57, 0.289, 0.244, 5.769, 63),
    "Turbo + AM2": (0.443, 0.230, 5.647, 62, 0.283, 0.240, 5.784, 51),
}

MMFS_1_COLUMNS = (("FID", "down", "fid", 2), ("Arcface-Dist", "down", "arcface_dist", 3), ("LPIPS", "up", "diversity", 3))
MMFS_1 = {
    "MUNIT": (18.96, 0.511, 0.505),
    "DRIT++": (16.18, 0.514, 0.489),
    "BlendGAN": (51.94, 0.509, 0.482),
    "MMFS": (10.39, 0.507, 0.583),
}

SCALE = "The paper does not say which layers and which scale its style loss has: compare its order only."
CAPTION = ("Lines \"paper\" are the paper's numbers, on its pictures, models and hardware; lines \"ours\" are this manifest's.\n"
           "They are comparable only where pictures, prompts, weights and counts are the same.")


def means(summaries: dict[str, dict], arrows: dict[str, str]) -> str:
    """Every metric's mean ± standard deviation of the sample for each method, and in brackets how many have a value."""
    rows = [["", *summaries]]
    for metric in dict.fromkeys(metric for result in summaries.values() for metric in result["metrics"]):
        entries = [result["metrics"].get(metric) for result in summaries.values()]
        rows.append([title((metric, arrows[metric])) if metric in arrows else metric, *map(cell, entries)])
    return "\n".join(aligned(rows, texts=1))


def cell(entry: dict | None) -> str:
    if entry is None or entry["mean"] is None:
        return "-"
    of = f" of {entry['count'] + entry['undefined']}" if entry["undefined"] else ""
    return f"{entry['mean']:.4g}" + (f" ± {entry['std']:.2g}" if entry["std"] is not None else "") + f" ({entry['count']}{of})"


def fastface_1(summaries: dict[str, dict]) -> str:
    """FastFace's table 1. The paper's FFC counts failures in all its pictures; n of ours is the number of pictures."""
    return halves("FastFace, table 1: baseline setup against FastFace setups", FASTFACE_1, summaries)


def fastface_2(summaries: dict[str, dict]) -> str:
    """FastFace's table 2, with ip_adapter_scale 0.8."""
    return lines("FastFace, table 2: baseline setups against DCG", FASTFACE_2_COLUMNS, FASTFACE_2, summaries, "Model")


def fastface_3(summaries: dict[str, dict]) -> str:
    """FastFace's table 3, realistic prompts with ip_adapter_scale 0.8."""
    return halves("FastFace, table 3: AM transforms against baseline setups", FASTFACE_3, summaries)


def halves(heading: str, paper: dict, summaries: dict[str, dict]) -> str:
    """Four columns with lora_scale 1.0, the same four with 0.5."""
    rows = []
    for name in dict.fromkeys([*paper, *(name.removesuffix(f" {HALF}") for name in summaries)]):
        ours = [summaries.get(name), summaries.get(f"{name} {HALF}")]
        if any(ours):
            rows.append([name, "ours", *(cell for half in ours for cell in [*values(half, FASTFACE), count(half)])])
        if name in paper:
            cells = list(map(printed, paper[name]))
            rows.append([name, "paper", *cells[:4], "", *cells[4:], ""])
    head = ["Model", "", *(title(column) for column in FASTFACE), "n", *(title(column) for column in FASTFACE), "n"]
    body = aligned([head, *rows])
    first, second = body[0].index("ID"), body[0].rindex("ID")
    over = " " * first + "lora_scale=1.0".ljust(second - first) + "lora_scale=0.5"
    return "\n".join([heading, CAPTION, "", over, *body])


def mmfs_1(summaries: dict[str, dict]) -> str:
    """MMFS's table 1. Its Arcface-Dist is one minus the identity metric."""
    flipped = {name: {**summary, "metrics": {**summary["metrics"], "arcface_dist": one_minus(summary["metrics"].get("identity"))}}
               for name, summary in summaries.items()}
    return lines("MMFS, table 1: random stylization", MMFS_1_COLUMNS, MMFS_1, flipped)


def one_minus(entry: dict | None) -> dict | None:
    return entry if entry is None or entry["mean"] is None else {**entry, "mean": 1 - entry["mean"]}


def zepo_2(summaries: dict[str, dict]) -> str:
    """ZePo's table 2. Its style loss has no stated layers or scale, so only its order can be compared."""
    return lines("ZePo, table 2: comparison with conventional portrait stylization baselines", ZEPO_2_COLUMNS, ZEPO_2, summaries, note=SCALE)


def zepo_3(summaries: dict[str, dict]) -> str:
    """ZePo's table 3."""
    return lines("ZePo, table 3: sampling steps T, with and without Feature Merge (FM)", ZEPO_3_COLUMNS, ZEPO_3, summaries, note=SCALE)


def lines(heading: str, columns: tuple, paper: dict, summaries: dict[str, dict], first: str = "Method", note: str = "") -> str:
    rows = []
    for name in dict.fromkeys([*paper, *summaries]):
        if name in summaries:
            rows.append([name, "ours", *values(summaries[name], columns), count(summaries[name])])
        if name in paper:
            rows.append([name, "paper", *map(printed, paper[name], (digits for *_, digits in columns)), ""])
    head = [first, "", *map(title, columns), "n"]
    return "\n".join([heading, CAPTION, *[note] * bool(note), "", *aligned([head, *rows])])


TABLES = {"fastface1": fastface_1, "fastface2": fastface_2, "fastface3": fastface_3, "mmfs1": mmfs_1, "zepo2": zepo_2, "zepo3": zepo_3}


def title(column: tuple) -> str:
    return f"{column[0]} {'↑' if column[1] == 'up' else '↓'}"


def values(summary: dict | None, columns: tuple) -> list[str]:
    cells = []
    for _, _, metric, digits in columns:
        entry = (summary or {}).get("metrics", {}).get(metric)
        value = None if not entry else entry["sum" if metric == "face_fails" else "mean"]
        cells.append("-" if value is None else f"{value:.{digits}f}")
    return cells


def printed(number: float, digits: int = 3) -> str:
    """As the papers print it."""
    return str(number) if isinstance(number, int) else f"{number:.{digits}f}"


def count(summary: dict | None) -> str:
    return "" if summary is None else str(summary["pictures"])


def aligned(rows: list[list[str]], texts: int = 2) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) if i < texts else cell.rjust(width)
                      for i, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows]
