"""Guidance, schedules, inversion and regions in plain torch, readable next to the papers. Imports nothing of ComfyUI."""
