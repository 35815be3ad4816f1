"""Writes the editor's workflows, their API twins and the blueprints: `python3 -m workflows.make URL` in the root.

URL is a running ComfyUI with this pack; Python needs playwright and chromium, as for the browser tests. The graphs are
described here once, so that a subgraph is the same in every workflow and in its blueprint. The API twins come from the
editor itself.
"""
