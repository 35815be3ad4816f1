"""Adding patches to the transformer options of a single model call, without touching the caller's."""


def _with_list(options: dict, name: str, patches: list) -> dict:
    return {**options, "patches": {**options.get("patches", {}), name: patches}}


def prepend_patch(options: dict, name: str, patch) -> dict:
    """A copy of transformer options in which `patch` sees what the model made, before all others."""
    return _with_list(options, name, [patch, *options.get("patches", {}).get(name, [])])


def append_patch(options: dict, name: str, patch) -> dict:
    """A copy of transformer options in which `patch` has the last word."""
    return _with_list(options, name, [*options.get("patches", {}).get(name, []), patch])
