"""Faces: analysis, alignment, the FaceID networks and their files. Imports nothing of ComfyUI; insightface only where it is used."""
